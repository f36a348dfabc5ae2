package datadir

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// exportName is the name, below Snap, under which etcd's store waits until all
// else is ready. It must not begin like what a start of etcd or of ours removes.
const exportName = "export.db"

// Leave turns a directory of ours, of a member that is not running, into one on
// which etcd of the release target starts as the same member: etcd's store and
// .snap file are written, the log gets a mark where they are, and our store goes
// aside. The return value says where to. A second call finishes what a crash has
// interrupted.
func Leave(ctx context.Context, l Layout, target membership.Version, o Options) (aside string, err error) {
	o = o.withDefaults()
	p, err := l.readPointer()
	if err != nil {
		return "", err
	}
	kind, err := l.Kind()
	if err != nil {
		return "", err
	}
	switch {
	case p.task == leave:
		return finishLeave(l, p, o.Logger)
	case p.task == putAside:
		return "", fmt.Errorf("%s is being taken over from etcd: start the server on it once, which finishes it", l.DataDir)
	case kind == Both:
		return "", l.errBoth()
	case kind == Etcds:
		return "", fmt.Errorf("%s is a directory of etcd already", l.DataDir)
	}
	if err := prepareLeave(ctx, l, target, o); err != nil {
		return "", err
	}
	if p.name, err = l.freeName("store.quorate"); err != nil {
		return "", err
	}
	p.task = leave
	if err := l.writePointer(p); err != nil {
		return "", err
	}
	return finishLeave(l, p, o.Logger)
}

// prepareLeave writes etcd's files beside ours.
func prepareLeave(ctx context.Context, l Layout, target membership.Version, o Options) (err error) {
	log, err := raftlog.Open(l.FS, l.WAL(), raftlog.Options{KeepSegments: -1, NoBackground: true, Logger: o.Logger})
	if err != nil {
		return fmt.Errorf("open raft log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	eng, err := OpenStore(l, o.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	meta, data, err := Describe(eng, o.Version, target.Less(withoutV2))
	if err != nil {
		return err
	}
	if err := checkLeave(l, eng, log, meta, target, o); err != nil {
		return err
	}
	if err := MakeDirs(l.FS, l.Snap()); err != nil {
		return err
	}
	export := l.FS.PathJoin(l.Snap(), exportName)
	start := time.Now()
	o.Logger.Info("writing the store of etcd", zap.String("to", export), zap.Uint64("applied-index", meta.GetIndex()))
	if _, err := snapshot.Export(ctx, eng, export, snapshot.Options{FS: l.FS, WithoutV2: true}); err != nil {
		return err
	}
	if meta.GetIndex() > 0 {
		mark := raftlog.SnapshotMark{Index: meta.GetIndex(), Term: meta.GetTerm(), ConfState: meta.GetConfState()}
		if err := log.SaveMark(mark); err != nil {
			return fmt.Errorf("mark the raft log: %w", err)
		}
		if err := snapshot.SaveSnap(l.Snap(), &raftpb.Snapshot{Data: data, Metadata: meta}, snapshot.Options{FS: l.FS}); err != nil {
			return err
		}
	}
	o.Logger.Info("wrote the store of etcd", zap.String("to", export), zap.Duration("took", time.Since(start)))
	return nil
}

// checkLeave refuses what etcd could not start on.
func checkLeave(l Layout, eng engine.Reader, log *raftlog.Log, meta *raftpb.SnapshotMetadata, target membership.Version, o Options) error {
	index := meta.GetIndex()
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	if index+1 < first || index < log.Mark().Index {
		return fmt.Errorf("the store in %s has applied entry %d, but the raft log in %s begins at entry %d: start the member once, then stop it",
			l.Member(), index, l.WAL(), first)
	}
	if term, err := log.Term(index); err != nil || term != meta.GetTerm() {
		return fmt.Errorf("the store in %s has applied entry %d of term %d, which the raft log in %s does not hold: start the member once, then stop it",
			l.Member(), index, meta.GetTerm(), l.WAL())
	}
	c := membership.New(membership.Options{ServerVersion: o.Version, Aside: true})
	if err := c.Load(eng); err != nil {
		return err
	}
	if v := c.Version(); v.Decided() && target.MajorMinor().Less(v.MajorMinor()) {
		return fmt.Errorf("the cluster's version is %d.%d, on which etcd %d.%d does not start: run 'etcdctl downgrade enable %d.%d' on the running cluster first",
			v.Major, v.Minor, target.Major, target.Minor, target.Major, target.Minor)
	}
	if err := checkV2(eng, target, o); err != nil {
		return err
	}
	return checkEntries(l, log, index+1, target)
}

// checkEntries refuses a log that the target cannot read: it may hold v2 requests in
// the form of 3.5, or carried in one of today, which are behind us once the store is
// written.
func checkEntries(l Layout, log *raftlog.Log, from uint64, target membership.Version) error {
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	for from <= last {
		ents, err := log.Entries(from, last+1, 4<<20)
		if err != nil {
			return err
		}
		for _, e := range ents {
			if e.GetType() == raftpb.EntryNormal && !readableBy(e.Data, target) {
				return fmt.Errorf("entry %d of the raft log in %s is a v2 request in a form which etcd %d.%d cannot read: start the member once, then stop it",
					e.GetIndex(), l.WAL(), target.Major, target.Minor)
			}
		}
		from += uint64(len(ents))
	}
	return nil
}

// readableBy reports whether etcd of a release can read an entry, as far as v2
// requests go: 3.5 reads them all as they are, 3.6 those of members about themselves,
// 3.7 none.
func readableBy(data []byte, target membership.Version) bool {
	is, write, carried := command.V2(data)
	switch {
	case target.Less(withoutV2):
		return !carried
	case target.Less(membership.Version{Major: 3, Minor: 7}):
		return !write || carried
	}
	return !is || carried
}

// finishLeave does the steps after which the directory is etcd's. Each may have
// been done before.
func finishLeave(l Layout, p pointer, lg *zap.Logger) (aside string, err error) {
	fs := l.FS
	if err := renameIfThere(fs, fs.PathJoin(l.Snap(), exportName), l.DB()); err != nil {
		return "", fmt.Errorf("put the store of etcd in place: %w", err)
	}
	aside = fs.PathJoin(l.Member(), p.name)
	if err := renameIfThere(fs, fs.PathJoin(l.Member(), p.store), aside); err != nil {
		return "", fmt.Errorf("put the store aside: %w", err)
	}
	names, err := fs.List(l.Member())
	if err != nil {
		return "", err
	}
	for _, name := range names { // what a snapshot that was being installed has left
		if strings.HasPrefix(name, StorePrefix) {
			if err := fs.RemoveAll(fs.PathJoin(l.Member(), name)); err != nil {
				return "", err
			}
		}
	}
	if err := removeIfThere(fs, l.Owner()); err != nil {
		return "", err
	}
	if err := removeIfThere(fs, l.pointerFile()); err != nil {
		return "", err
	}
	if err := syncDir(fs, l.Member()); err != nil {
		return "", fmt.Errorf("sync %s: %w", l.Member(), err)
	}
	lg.Info("the directory is etcd's; our store is kept and may be removed", zap.String("data-dir", l.DataDir), zap.String("kept-in", aside))
	return aside, nil
}

// Describe reads from a state of the store what raft and members of etcd want to
// know about it: its position, and the membership as the JSON of the v2 store. keys
// puts the keys of the v2 API in as well, which members of etcd 3.5 need, and
// later ones do not start on.
func Describe(state engine.Reader, own membership.Version, keys bool) (*raftpb.SnapshotMetadata, []byte, error) {
	index, term, err := apply.Position(state)
	if err != nil {
		return nil, nil, err
	}
	c := membership.New(membership.Options{ServerVersion: own, Aside: true})
	if err := c.Load(state); err != nil {
		return nil, nil, err
	}
	cs := &raftpb.ConfState{}
	var members []snapshot.Member
	for _, x := range c.Members() {
		if x.IsLearner {
			cs.Learners = append(cs.Learners, x.ID)
		} else {
			cs.Voters = append(cs.Voters, x.ID)
		}
		members = append(members, snapshot.Member{ID: x.ID, Name: x.Name, PeerURLs: x.PeerURLs, ClientURLs: x.ClientURLs, IsLearner: x.IsLearner})
	}
	version := ""
	if v := c.Version(); v.Decided() {
		version = v.String()
	}
	var tree engine.Reader
	if keys {
		tree = state
	}
	data, err := snapshot.V2Store(members, c.RemovedIDs(), version, tree)
	if err != nil {
		return nil, nil, err
	}
	return &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: cs}, data, nil
}
