package datadir

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/clock"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// ErrInUse is wrapped by errors about a directory that another process is using.
var ErrInUse = errors.New("in use by another process")

// etcds describes a directory of etcd, as read before anything is changed.
type etcds struct {
	log  *raftlog.Contents
	db   string // file with the newest state: db, or a snapshot received from a peer
	meta snapshot.Meta
	// changes are the membership changes in the log, in order; set only for a
	// directory of etcd 3.5.
	changes []change
	// terms tells which of several log records with the same index is the valid one;
	// set only for a directory of etcd 3.5.
	terms []termRun
	snap  *raftpb.Snapshot // newest .snap file that the log refers to; nil if none
}

// termRun is a run of entries of one term, beginning at an index.
type termRun struct {
	from ids.Index
	term ids.Term
}

type change struct {
	index ids.Index
	cc    *raftpb.ConfChange
}

// is35 reports whether the store has no storage version: etcd 3.6 introduced it.
func (e *etcds) is35() bool { return e.meta.StorageVersion == "" }

// release returns the release of etcd that wrote the store, for messages.
func (e *etcds) release() string {
	if e.is35() {
		return membership.V35.Short()
	}
	v, err := membership.ParseVersion(e.meta.StorageVersion)
	if err != nil {
		return e.meta.StorageVersion
	}
	return v.Short()
}

// examine reads and checks the log and the metadata of the store.
func examine(ctx context.Context, l Layout, own membership.Version, lg *zap.Logger) (*etcds, error) {
	e := &etcds{db: l.DB()}
	meta, err := snapshot.PeekMeta(ctx, e.db, snapshot.Options{FS: l.FS})
	if err != nil {
		return nil, err
	}
	e.meta = meta
	if err := e.checkVersion(own); err != nil {
		return nil, err
	}
	var collect func(index ids.Index, term ids.Term, t raftpb.EntryType, data []byte) error
	if e.is35() {
		collect = e.collect
	}
	e.log, err = raftlog.Inspect(l.FS, l.WAL(), collect)
	if errors.Is(err, raftlog.ErrNotFound) {
		return nil, fmt.Errorf("%s holds a store of etcd (%s), but there is no raft log in %s: check --data-dir and --wal-dir",
			l.DataDir, l.DB(), l.WAL())
	}
	if err != nil {
		return nil, err
	}
	// A snapshot from a peer was received and recorded in the log, but not yet moved
	// to db.
	if m := e.log.Mark.Index; m > e.meta.ConsistentIndex && m > 0 {
		e.db = l.FS.PathJoin(l.Snap(), snapshot.DBName(m))
		if there, err := exists(l.FS, e.db); err != nil {
			return nil, err
		} else if !there {
			return nil, fmt.Errorf("the store %s has applied entry %d, but the raft log in %s begins with a snapshot at entry %d, and %s is missing: files are missing",
				l.DB(), e.meta.ConsistentIndex, l.WAL(), m, e.db)
		}
		if e.meta, err = snapshot.PeekMeta(ctx, e.db, snapshot.Options{FS: l.FS}); err != nil {
			return nil, err
		}
		if err := e.checkVersion(own); err != nil {
			return nil, err
		}
	}
	if err := e.checkTogether(l); err != nil {
		return nil, err
	}
	return e, e.readSnap(l, lg)
}

func (e *etcds) checkVersion(own membership.Version) error {
	for _, x := range []struct{ what, text string }{{"storage version", e.meta.StorageVersion}, {"cluster version", e.meta.ClusterVersion}} {
		if x.text == "" {
			continue
		}
		v, err := membership.ParseVersion(x.text)
		if err != nil {
			return fmt.Errorf("%s has the %s %q, which is not a version: it was written by an unknown release", e.db, x.what, x.text)
		}
		if own.MajorMinor().Less(v.MajorMinor()) {
			return fmt.Errorf("%s has the %s %s, which is newer than this program (%s)", e.db, x.what, x.text, own)
		}
		if v.Less(membership.FirstTakenOver) && v != membership.MinClusterVersion { // MinClusterVersion: not all members have been seen yet
			return fmt.Errorf("%s has the %s %s: start etcd %s on the directory once, then it can be taken over", e.db, x.what, x.text, membership.FirstTakenOver.Short())
		}
	}
	if e.meta.ConsistentIndex > 0 && e.meta.Term == 0 {
		return fmt.Errorf("%s names no term for its newest entry %d, so it is of etcd 3.4 or older: start etcd %s on the directory once, then it can be taken over",
			e.db, e.meta.ConsistentIndex, membership.FirstTakenOver.Short())
	}
	return nil
}

// checkTogether compares what the store has applied with what the log holds.
func (e *etcds) checkTogether(l Layout) error {
	applied := e.meta.ConsistentIndex
	switch {
	case applied+1 < e.log.First:
		return fmt.Errorf("the store %s has applied entry %d, but the raft log in %s begins at entry %d: one of them is not the current one",
			e.db, applied, l.WAL(), e.log.First)
	case applied > e.log.Last:
		return fmt.Errorf("the store %s has applied entry %d, but the raft log in %s ends at entry %d: log files are missing",
			e.db, applied, l.WAL(), e.log.Last)
	}
	term, err := e.log.Term(uint64(applied))
	if err != nil {
		return fmt.Errorf("term of applied entry %d: %w", applied, err)
	}
	if applied > 0 && ids.Term(term) != e.meta.Term {
		return fmt.Errorf("the store %s has applied entry %d of term %d, but the raft log in %s has another entry there: one of them is not the current one",
			e.db, applied, e.meta.Term, l.WAL())
	}
	return nil
}

// collect records the membership changes of the log and the terms of its entries.
func (e *etcds) collect(index ids.Index, term ids.Term, t raftpb.EntryType, data []byte) error {
	for n := len(e.changes); n > 0 && e.changes[n-1].index >= index; n-- {
		e.changes = e.changes[:n-1] // replaced by another leader
	}
	for n := len(e.terms); n > 0 && e.terms[n-1].from >= index; n-- {
		e.terms = e.terms[:n-1]
	}
	if n := len(e.terms); n == 0 || e.terms[n-1].term != term {
		e.terms = append(e.terms, termRun{index, term})
	}
	if t != raftpb.EntryConfChange {
		return nil
	}
	cc := &raftpb.ConfChange{}
	if err := proto.Unmarshal(data, cc); err != nil {
		return fmt.Errorf("entry %d: decode configuration change: %w", index, err)
	}
	e.changes = append(e.changes, change{index, cc})
	return nil
}

// readSnap loads the newest .snap file that the log refers to. Damaged ones are
// skipped, as in etcd.
func (e *etcds) readSnap(l Layout, lg *zap.Logger) error {
	o := snapshot.Options{FS: l.FS}
	names, err := snapshot.Snaps(l.Snap(), o)
	if err != nil {
		return err
	}
	for _, name := range names {
		term, index, _ := snapshot.ParseSnapName(name)
		if !slices.ContainsFunc(e.log.Marks, func(m raftlog.SnapshotMark) bool { return m.Index == index && m.Term == term }) {
			continue
		}
		path := l.FS.PathJoin(l.Snap(), name)
		s, err := snapshot.LoadSnap(path, o)
		var ce *snapshot.CorruptError
		if errors.As(err, &ce) {
			lg.Warn("skipping a damaged snapshot file", zap.String("path", path), zap.Error(err))
			continue
		}
		if err != nil {
			return err
		}
		e.snap = s
		return nil
	}
	return nil
}

// repairMembership gives a store of etcd 3.5 the members that etcd 3.5 itself uses:
// those of the v2 store, from the .snap file and the changes after it. Releases
// before 3.5.26 could let the copy in the store fall behind.
func (e *etcds) repairMembership(eng engine.Engine, b engine.Batch, own membership.Version, lg *zap.Logger) error {
	if !e.is35() || e.snap == nil {
		return nil
	}
	members, removed, _, err := snapshot.ParseV2Store(e.snap.Data)
	if err != nil {
		return fmt.Errorf("membership in the newest .snap file: %w", err)
	}
	scratch := mem.New()
	defer scratch.Close()
	v2 := membership.New(membership.Options{Aside: true})
	sb := scratch.NewBatch()
	defer sb.Discard()
	var start []membership.Member
	for _, m := range members {
		start = append(start, membership.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner})
	}
	if err := v2.Reset(sb, start); err != nil {
		return err
	}
	for _, c := range e.changes {
		if c.index > ids.Index(e.snap.GetMetadata().GetIndex()) && c.index <= e.meta.ConsistentIndex {
			if _, err := v2.Apply(sb, c.cc); err != nil {
				lg.Debug("a configuration change was refused", zap.Uint64("index", uint64(c.index)), zap.Error(err))
			}
		}
	}
	stored := membership.New(membership.Options{ServerVersion: own, Aside: true})
	if err := stored.Load(eng); err != nil {
		return err
	}
	gone := append(removed, v2.RemovedIDs()...)
	for _, id := range stored.MemberIDs() {
		if _, ok := v2.Member(id); !ok {
			lg.Warn("dropping a member that etcd 3.5 does not count any more", zap.Stringer("member-id", id))
			gone = append(gone, id)
			b.Delete(engine.Members.K([]byte(id.String())))
		}
	}
	for _, id := range gone {
		if !stored.IsRemoved(id) {
			b.Set(engine.MembersRemoved.K([]byte(id.String())), []byte("removed"))
		}
	}
	for _, m := range v2.Members() {
		have, ok := stored.Member(m.ID)
		if ok && have.IsLearner == m.IsLearner && slices.Equal(have.PeerURLs, m.PeerURLs) {
			continue
		}
		lg.Warn("taking a member from the v2 store", zap.Stringer("member-id", m.ID))
		if ok {
			m.Name, m.ClientURLs = have.Name, have.ClientURLs
		}
		if err := membership.Put(b, m); err != nil {
			return err
		}
	}
	return nil
}

// reporter logs the progress of a copy, at most every two seconds.
func reporter(lg *zap.Logger, path string, working func(status string)) func(snapshot.Progress) {
	last := clock.Now()
	if working != nil {
		working("copying the store of etcd")
	}
	return func(p snapshot.Progress) {
		if p.Done || clock.Since(last) < 2*time.Second {
			return
		}
		last = clock.Now()
		lg.Info("copying the store", zap.String("from", path), zap.Uint64("percent", 100*p.Pages/max(p.AllPages, 1)), zap.Int64("keys", p.Pairs))
		if working != nil {
			working(fmt.Sprintf("copying the store of etcd: %d%%, %d keys", 100*p.Pages/max(p.AllPages, 1), p.Pairs))
		}
	}
}
