package datadir

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// Restore describes a member of a new cluster that begins with the data of a
// database file.
type Restore struct {
	File      string // database, with or without a trailing checksum; already verified
	LocalID   ids.Member
	ClusterID ids.Cluster
	Founders  []membership.Member // all members of the new cluster, with ids
	// BumpRevision raises the newest revision by this number and compacts everything
	// up to it, so that no client sees a revision that it knows with other data. 0:
	// neither.
	BumpRevision int64
}

// An interrupted restore leaves a directory on which nothing can start. The file
// RESTORING exists from the first step to the last, and contains the path of the log.

func (l Layout) restoring() string { return l.FS.PathJoin(l.Member(), "RESTORING") }

// errRestoring returns an error if a restore into the directory was interrupted.
func (l Layout) errRestoring() error {
	there, err := exists(l.FS, l.restoring())
	if err == nil && there {
		err = fmt.Errorf("a restore into %s was interrupted: run 'etcdutl snapshot restore' again, which starts over", l.DataDir)
	}
	return err
}

// RemoveInterrupted removes what an interrupted restore has left in the directories
// of l. It reports whether it removed anything.
func RemoveInterrupted(l Layout) (bool, error) {
	wal, err := ReadNote(l.FS, l.restoring())
	if errors.Is(err, os.ErrNotExist) {
		return l.removeBegun()
	}
	if err != nil {
		return false, err
	}
	return true, l.removeRestored(strings.TrimSpace(wal))
}

// removeBegun removes what a restore leaves that was interrupted before it wrote RESTORING.
func (l Layout) removeBegun() (bool, error) {
	for dir, only := range map[string]string{l.DataDir: l.FS.PathBase(l.Member()), l.Member(): l.FS.PathBase(l.restoring()) + durable.TempSuffix} {
		names, err := l.FS.List(dir)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err != nil || len(names) > 1 || len(names) == 1 && names[0] != only {
			return false, err
		}
	}
	return true, l.FS.RemoveAll(l.Member())
}

// removeRestored removes the directories of a restore, the one with RESTORING last.
func (l Layout) removeRestored(wal string) error {
	if err := errors.Join(durable.RemoveAll(l.FS, wal), l.FS.RemoveAll(wal+".tmp")); err != nil {
		return err
	}
	names, err := l.FS.List(l.Member())
	if err != nil {
		return err
	}
	for _, name := range names {
		if path := l.FS.PathJoin(l.Member(), name); path != l.restoring() {
			if err := l.FS.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	if err := durable.SyncDir(l.FS, l.Member()); err != nil {
		return err
	}
	return durable.RemoveAll(l.FS, l.Member())
}

// RestoreInto creates the directories of l, which must not exist or be empty. After an
// error it removes them; after a crash RemoveInterrupted does.
func RestoreInto(ctx context.Context, l Layout, r Restore, o Options) (err error) {
	o = o.withDefaults()
	if err := durable.MkdirAll(l.FS, l.DataDir, l.Member()); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.removeRestored(l.WAL()))
		}
	}()
	if err := WriteNote(l.FS, l.restoring(), l.WAL()+"\n"); err != nil {
		return err
	}
	if err := durable.MkdirAll(l.FS, l.Snap(), l.FS.PathDir(l.WAL())); err != nil {
		return err
	}
	if err := l.Guard(); err != nil {
		return err
	}
	eng, err := o.opener(l)(l.firstStore())
	if err != nil {
		return err
	}
	commit := ids.Index(len(r.Founders))
	if err := errors.Join(r.fill(ctx, l, eng, commit, o), eng.Close()); err != nil {
		return err
	}
	for _, m := range r.Founders {
		o.Logger.Info("added member", zap.Stringer("cluster-id", r.ClusterID), zap.String("local-member-id", "0"),
			zap.Stringer("added-peer-id", m.ID), zap.Strings("added-peer-peer-urls", m.PeerURLs), zap.Bool("added-peer-is-learner", m.IsLearner))
	}
	if err := durable.SyncDir(l.FS, l.Member()); err != nil {
		return err
	}
	if err := r.writeLog(l, commit, o); err != nil {
		return err
	}
	return durable.Remove(l.FS, l.Member(), l.FS.PathBase(l.restoring()))
}

const restoredTerm = 1

func (r *Restore) fill(ctx context.Context, l Layout, eng engine.Engine, commit ids.Index, o Options) error {
	_, err := snapshot.Read(ctx, r.File, eng, snapshot.Options{FS: l.FS, BatchBytes: o.BatchBytes, Progress: reporter(o.Logger, r.File, o.Working)})
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
	return eng.Flush(ctx)
}

// trimming is etcd's log message about a store whose members are replaced.
const trimming = "Trimming membership information from the backend..."

// rewrite makes the store that of a member of the new cluster. Scripts look for
// etcd's log messages about it.
func (r *Restore) rewrite(eng engine.Reader, b engine.Batch, commit ids.Index, lg *zap.Logger) error {
	lg.Info(trimming)
	if err := membership.Replace(b, r.Founders); err != nil {
		return err
	}
	if err := membership.PutConfState(b, r.confState()); err != nil {
		return err
	}
	apply.SetPosition(b, commit, restoredTerm)
	for _, bucket := range []engine.Bucket{engine.V2, engine.Digest} { // etcd's restore keeps nothing of the v2 API either
		lower, upper := bucket.Bounds()
		b.DeleteRange(lower, upper)
	}
	if r.BumpRevision == 0 {
		return nil
	}
	rev, err := mvcc.Newest(eng)
	if err != nil {
		return err
	}
	if r.BumpRevision < 0 || ids.Revision(r.BumpRevision) > math.MaxInt64-rev {
		return fmt.Errorf("the latest revision %d cannot be raised by %d", rev, r.BumpRevision)
	}
	lg.Info("bumping latest revision", zap.Int64("latest-revision", int64(rev)), zap.Int64("bump-amount", r.BumpRevision), zap.Int64("new-latest-revision", int64(rev+ids.Revision(r.BumpRevision))))
	rev += ids.Revision(r.BumpRevision)
	lg.Info("marking revision compacted", zap.Int64("revision", int64(rev)))
	mvcc.Bump(b, rev)
	return nil
}

func (r *Restore) confState() *raftpb.ConfState {
	cs := &raftpb.ConfState{}
	for _, m := range r.Founders {
		cs.Voters = append(cs.Voters, uint64(m.ID))
	}
	return cs
}

// writeLog creates a log that begins after the entries that would add the members.
// They are left out: etcd, started on the directory by mistake, would take them for
// the whole history.
func (r *Restore) writeLog(l Layout, commit ids.Index, o Options) (err error) {
	log, err := raftlog.Create(l.FS, l.WAL(), raftlog.Metadata{NodeID: r.LocalID, ClusterID: r.ClusterID}, raftlog.Options{NoBackground: true, Logger: o.Logger})
	if err != nil {
		return fmt.Errorf("create raft log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if err := log.Reset(raftlog.SnapshotMark{Index: commit, Term: restoredTerm, ConfState: r.confState(), Alone: true}); err != nil {
		return fmt.Errorf("begin the raft log: %w", err)
	}
	return log.Append(&raftpb.HardState{Term: new(uint64(restoredTerm)), Vote: new(uint64(r.Founders[0].ID)), Commit: new(uint64(commit))}, nil, true)
}
