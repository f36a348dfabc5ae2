package datadir

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// release is what decides which releases of etcd start in a cluster.
type release struct {
	version   membership.Version
	downgrade membership.Downgrade
}

// admits reports whether etcd of a release starts. Etcd 3.5 also refuses to while a
// downgrade to another release is enabled.
func (r release) admits(target membership.Version) bool {
	return !target.MajorMinor().Less(r.version.MajorMinor()) && !r.forbids(target)
}

func (r release) forbids(target membership.Version) bool {
	return target.Less(membership.FirstStorageVersion) && r.downgrade.Enabled && r.downgrade.Target != target.MajorMinor().String()
}

// after returns the state after an entry, in its present form or that of a v2 request,
// and whether the entry sets the version.
func (r release) after(e *raftpb.Entry) (_ release, sets bool) {
	if e.GetType() != raftpb.EntryNormal || len(e.Data) == 0 {
		return r, false
	}
	req, err := command.Decode(e.Data)
	if err != nil {
		return r, false // nothing that etcd or this program could apply
	}
	if set := req.ClusterVersionSet; set != nil {
		if v, err := membership.ParseVersion(set.GetVer()); err == nil {
			r.version, sets = v, true
		}
	}
	if set := req.DowngradeInfoSet; set != nil {
		d := membership.Downgrade{Enabled: set.GetEnabled()}
		if d.Enabled {
			d.Target = set.GetVer()
		}
		if _, err := membership.ParseVersion(d.Target); err == nil || !d.Enabled {
			r.downgrade = d
		}
	}
	return r, sets
}

// withVersions judges whether etcd of the target starts in the cluster as it is at the
// commit index, and returns the state of the store with the version and the downgrade
// of then. A store may be behind the log, after a kill -9 by everything since its last
// flush. Etcd compares its release with the version in its store before it reads the
// log, and with each version that the log brings: a version that has been lowered in the
// log must be in the store, and one that was too high for a while must not be in the log.
func withVersions(l Layout, eng engine.Reader, log *raftlog.Log, applied, commit ids.Index, target membership.Version, o Options) (engine.Reader, error) {
	c := membership.New(membership.Options{ServerVersion: o.Version, Aside: true})
	if err := c.Load(eng); err != nil {
		return nil, err
	}
	stored := release{c.Version(), c.Downgrade()}
	now, later := stored, stored
	var passing, pending ids.Index // the first entries on which etcd would stop, and with which the answer changes
	err := eachEntry(log, applied+1, func(e *raftpb.Entry) error {
		index := ids.Index(e.GetIndex())
		var sets bool
		later, sets = later.after(e)
		switch {
		case index <= commit:
			if now = later; sets && !now.admits(target) && passing == 0 {
				passing = index
			}
		case later.admits(target) != now.admits(target) && pending == 0:
			pending = index
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case pending > 0:
		return nil, fmt.Errorf("entry %d of the raft log in %s changes whether etcd %s starts in this cluster, and is not known to be committed: start the member once, then stop it",
			pending, l.WAL(), target.Short())
	case !now.admits(target):
		return nil, now.refusal(target, o.Version)
	case passing > 0:
		return nil, fmt.Errorf("entry %d of the raft log in %s is about a version on which etcd %s does not start: start the member once, then stop it",
			passing, l.WAL(), target.Short())
	case now == stored:
		return eng, nil
	}
	return now.over(eng, c)
}

// refusal says why etcd of the target does not start, and what leads to it.
func (r release) refusal(target, own membership.Version) error {
	if !target.MajorMinor().Less(r.version.MajorMinor()) {
		return fmt.Errorf("a downgrade to %s is enabled, during which etcd %s does not start: run 'etcdctl downgrade cancel' on the running cluster first",
			r.downgrade.Target, target.Short())
	}
	why := fmt.Sprintf("the cluster's version is %s, on which etcd %s does not start", r.version.Short(), target.Short())
	from, _ := membership.DowngradeTarget(r.version.MajorMinor())
	lowest, _ := membership.DowngradeTarget(own.MajorMinor())
	switch {
	case target.MajorMinor() != from || target.MajorMinor() != lowest:
		// A downgrade goes one release below that of the servers.
		return fmt.Errorf("%s, and no downgrade of this cluster leads to it: go to etcd %s, from which etcd's own downgrade goes on; "+
			"or make a copy with 'etcdutl backup', on which etcd %s starts with --force-new-cluster", why, lowest.Short(), target.Short())
	case r.downgrade.Enabled && r.downgrade.Target == target.MajorMinor().String():
		return fmt.Errorf("%s; the downgrade to %s is enabled but has not changed it yet: start the member, wait until the version is %s, then stop it",
			why, target.Short(), target.Short())
	}
	return fmt.Errorf("%s: run 'etcdctl downgrade enable %s' on the running cluster first, and wait until its version is %s", why, target.Short(), target.Short())
}

// restated is a state with another content of the bucket cluster.
type restated struct {
	engine.Reader
	cluster engine.Reader
}

// over returns a state in which the membership c has the version and the downgrade r.
func (r release) over(state engine.Reader, c *membership.Cluster) (engine.Reader, error) {
	cluster := mem.New()
	b := cluster.NewBatch()
	err := c.SetDowngrade(b, r.downgrade)
	if err == nil && r.version.Decided() {
		err = c.SetVersion(b, r.version)
	}
	if err != nil {
		b.Discard()
		return nil, err
	}
	return restated{state, cluster}, b.Commit()
}

func (r restated) in(key []byte) engine.Reader {
	if len(key) > 0 && key[0] == byte(engine.Cluster) {
		return r.cluster
	}
	return r.Reader
}

func (r restated) Get(dst, key []byte) ([]byte, error) { return r.in(key).Get(dst, key) }

func (r restated) NewIter(lower, upper []byte) (engine.Iterator, error) {
	return r.in(lower).NewIter(lower, upper)
}

// eachEntry passes the entries of a log from an index on.
func eachEntry(log *raftlog.Log, from ids.Index, fn func(e *raftpb.Entry) error) error {
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	for from <= ids.Index(last) {
		ents, err := log.Entries(uint64(from), last+1, 4<<20)
		if err != nil {
			return err
		}
		for _, e := range ents {
			if err := fn(e); err != nil {
				return err
			}
		}
		from += ids.Index(len(ents))
	}
	return nil
}
