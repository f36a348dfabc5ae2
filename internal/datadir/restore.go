package datadir

import (
	"context"
	"errors"
	"fmt"
	"math"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/engine"
	"quorate/internal/engine/pebble"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// Restore describes a member of a new cluster that begins with the data of a
// database file.
type Restore struct {
	File      string // database, with or without a checksum behind it; already verified
	LocalID   uint64
	ClusterID uint64
	Founders  []membership.Member // all members of the new cluster, with ids
	// BumpRevision raises the newest revision by so much and compacts everything
	// up to it, so that no client sees a revision again that it knows with other
	// data. 0: neither.
	BumpRevision int64
}

// RestoreInto makes the directories of l, which must not exist or be empty. What a
// crash or an error leaves of them is of no use and must be removed by the caller.
func RestoreInto(ctx context.Context, l Layout, r Restore, o Options) (err error) {
	o = o.withDefaults()
	if err := MakeDirs(l.FS, l.DataDir, l.Member(), l.Snap(), l.FS.PathDir(l.WAL())); err != nil {
		return err
	}
	open := o.OpenEngine
	if open == nil {
		open = func(dir string) (engine.Engine, error) { return pebble.Open(dir, pebbleOptions(l, o.Logger)) }
	}
	eng, err := open(l.firstStore())
	if err != nil {
		return err
	}
	commit := uint64(len(r.Founders))
	if err := errors.Join(r.fill(ctx, l, eng, commit, o), eng.Close()); err != nil {
		return err
	}
	if err := syncDir(l.FS, l.Member()); err != nil {
		return err
	}
	// The log comes last: without it no server starts on what there is.
	return r.writeLog(l, commit, o)
}

const restoredTerm = 1

func (r *Restore) fill(ctx context.Context, l Layout, eng engine.Engine, commit uint64, o Options) error {
	_, err := snapshot.Read(ctx, r.File, eng, snapshot.Options{FS: l.FS, BatchBytes: o.BatchBytes, Progress: reporter(o.Logger, r.File)})
	if err != nil {
		return err
	}
	b := eng.NewBatch()
	if err := r.rewrite(eng, b, commit, o.Logger); err != nil {
		b.Discard()
		return err
	}
	if err := b.Commit(); err != nil {
		return err
	}
	return eng.Flush()
}

// rewrite makes the store that of a member of the new cluster.
func (r *Restore) rewrite(eng engine.Reader, b engine.Batch, commit uint64, lg *zap.Logger) error {
	if err := membership.Replace(b, r.Founders); err != nil {
		return err
	}
	if err := membership.PutConfState(b, r.confState()); err != nil {
		return err
	}
	apply.SetPosition(b, commit, restoredTerm)
	lower, upper := engine.V2.Bounds()
	b.DeleteRange(lower, upper) // etcd's restore keeps nothing of the v2 API either
	if r.BumpRevision == 0 {
		return nil
	}
	rev, err := mvcc.Newest(eng)
	if err != nil {
		return err
	}
	if r.BumpRevision < 0 || r.BumpRevision > math.MaxInt64-rev {
		return fmt.Errorf("the latest revision %d cannot be raised by %d", rev, r.BumpRevision)
	}
	lg.Info("bumping latest revision", zap.Int64("latest-revision", rev), zap.Int64("bump-amount", r.BumpRevision), zap.Int64("new-latest-revision", rev+r.BumpRevision))
	rev += r.BumpRevision
	lg.Info("marking revision compacted", zap.Int64("revision", rev))
	mvcc.Bump(b, rev)
	return nil
}

func (r *Restore) confState() *raftpb.ConfState {
	cs := &raftpb.ConfState{}
	for _, m := range r.Founders {
		cs.Voters = append(cs.Voters, m.ID)
	}
	return cs
}

func (r *Restore) writeLog(l Layout, commit uint64, o Options) (err error) {
	ents, err := membership.BootstrapEntries(r.Founders)
	if err != nil {
		return err
	}
	log, err := raftlog.Create(l.FS, l.WAL(), raftlog.Metadata{NodeID: r.LocalID, ClusterID: r.ClusterID}, raftlog.Options{NoBackground: true, Logger: o.Logger})
	if err != nil {
		return fmt.Errorf("create raft log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	hs := &raftpb.HardState{Term: new(uint64(restoredTerm)), Vote: new(r.Founders[0].ID), Commit: new(commit)}
	if err := log.Append(hs, ents, true); err != nil {
		return fmt.Errorf("write the first entries: %w", err)
	}
	// The entries make the members, the data come from the file.
	return log.SaveMark(raftlog.SnapshotMark{Index: commit, Term: restoredTerm, ConfState: r.confState(), Alone: true})
}
