package server

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/replica"
	"quorate/internal/transport"
)

// installer receives snapshots and replaces the store and the log with them.
type installer struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	cluster *membership.Cluster
	tr      *transport.Transport
	driver  *driver
	logw    *logWriter

	exchanged chan error    // capacity 1: the outcome of an exchange
	received  atomic.Uint64 // snapshots that this member has begun to receive
}

// releaseDelay is how long the log is not truncated after a snapshot was sent, so that
// the follower finds the entries after it. Only tests change it.
var releaseDelay = 30 * time.Second

// install replaces the state with a snapshot that raft has accepted. It runs on the log's
// goroutine; the exchange itself happens between two runs of apply.
func (s *installer) install() bool {
	meta := s.logw.work.Snapshot().GetMetadata()
	index := meta.GetIndex()
	metrics.ServerSnapshotApplyInProgressTotal.Set(1)
	defer metrics.ServerSnapshotApplyInProgressTotal.Set(0)
	before := zap.Uint64("current-snapshot-index", uint64(s.logw.work.Mark()))
	say := func(line string) {
		s.lg.Info(line, before, zap.Uint64("current-applied-index", uint64(s.replica.mach().Applied())),
			zap.Uint64("incoming-leader-snapshot-index", index), zap.Uint64("incoming-leader-snapshot-term", meta.GetTerm()))
	}
	say("applying snapshot")
	for {
		job := s.logw.work.Due()
		if err := s.do(job); err != nil {
			waited := s.replica.rootCtx.Err() != nil && (job == replica.Import || noRoom(err))
			if !waited && !errors.Is(err, errHalted) {
				s.replica.fail(fmt.Errorf("install snapshot %d: %s: %w", index, job, err))
			}
			return false // when shutting down, the next start receives the snapshot again or completes it
		}
		if s.logw.work.Done(); job == replica.Follow {
			say("applied snapshot")
			return true
		}
	}
}

var errHalted = errors.New("the member is stopping")

// do does one job of an installation, and retries it while there is no room.
func (s *installer) do(job replica.Job) error {
	step := func() error { return s.logw.work.Do(s.replica.rootCtx) }
	switch job {
	case replica.Import:
		return step()
	case replica.Exchange:
		if err := step(); err != nil {
			return err
		}
		select {
		case err := <-s.exchanged:
			return err
		case <-s.replica.halt:
			return errHalted
		}
	default:
		return s.replica.patiently(s.replica.rootCtx, "the raft log", s.cfg.logDir(), step)
	}
}

// exchange puts the imported store into use; readers of the old store finish on it. It
// runs on the apply goroutine.
func (s *installer) exchange(meta *raftpb.SnapshotMetadata) error {
	var (
		eng engine.Engine
		dir string
	)
	err := s.replica.patiently(s.replica.rootCtx, "installing a snapshot", s.replica.layout().Member(), func() (err error) {
		eng, dir, err = s.replica.home().Exchange(ids.Index(meta.GetIndex()))
		return err
	})
	if err != nil {
		return err
	}
	old := s.replica.mach()
	oldDir := s.replica.storeDir()
	hadV2 := old.V2().Written()
	mach, err := s.replica.openMachine(eng, dir)
	if err != nil {
		eng.Close()
		return err
	}
	s.replica.machine.Store(mach)
	s.replica.storeInUse.Store(&dir)
	if old.V2().Close(); hadV2 && !mach.V2().Written() {
		s.lg.Error("the snapshot came from a member that keeps no data of the v2 API; this member has none either now: replace the members of etcd 3.6 and later, then this one")
	}
	s.driver.pipe.Settler.Restored(apply.History{KV: mach.KV()}, mach.Applied())
	s.syncPeers()
	retire := func() { s.retire(old, mach, oldDir, ids.Index(meta.GetIndex())) }
	if !s.replica.background(retire) {
		retire() // the member shuts down, and waits for no one else
	}
	return nil
}

// retire closes a replaced store after its last reader is done.
func (s *installer) retire(old, next *apply.Machine, dir string, index ids.Index) {
	old.Retire(next)
	for old.InUse() {
		if s.replica.pause(s.replica.rootCtx, viewsPoll) != nil {
			break
		}
	}
	if err := old.Engine().Close(); err != nil {
		s.lg.Warn("failed to close the replaced store", zap.Error(err))
	}
	if err := s.replica.home().Retire(dir, index); err != nil {
		s.lg.Warn("failed to remove the store that a snapshot has replaced", zap.String("path", dir), zap.Error(err))
	}
}

// syncPeers adapts the transport to a membership that was replaced atomically.
func (s *installer) syncPeers() {
	for _, id := range s.cluster.RemovedIDs() {
		s.tr.RemovePeer(id)
	}
	for _, x := range s.cluster.Members() {
		if x.ID != s.replica.id {
			s.tr.AddPeer(x.ID, x.PeerURLs)
			s.tr.UpdatePeer(x.ID, x.PeerURLs)
		}
	}
}
