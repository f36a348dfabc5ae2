package server

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/auth"
	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/engine/pebble"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/raftlog"
)

// stored is the state machine on its store. Installing a snapshot replaces it atomically, so
// a caller that uses it twice for one purpose must load it once.
type stored struct {
	cfg       *Config
	fs        vfs.FS // of the engine, which waits for descriptors in its own way
	lg        *zap.Logger
	life      *life
	raftState *raftState
	disks     *disks
	cluster   *membership.Cluster
	lessor    *lease.Lessor
	auth      *auth.Store
	log       *raftlog.Log

	machine    atomic.Pointer[apply.Machine]
	storeInUse atomic.Pointer[string]
}

func (s *stored) openMachine(eng engine.Engine, dir string) (*apply.Machine, error) {
	cfg := s.cfg
	o := cfg.State
	o.Cluster, o.Lessor, o.Auth, o.Now, o.Logger, o.MVCC.Logger = s.cluster, s.lessor, s.auth, cfg.Clock.Now, s.lg, s.lg
	mach, err := apply.Open(eng, o)
	if err != nil {
		return nil, fmt.Errorf("load store %s: %w", dir, err)
	}
	err = s.cluster.CheckVersion(s.cluster.Version())
	if err == nil {
		err = s.checkLearners(s.cluster.Members())
	}
	if err != nil {
		mach.Close()
		return nil, err
	}
	return mach, nil
}

// openEngine opens the engine in dir. The engine reads some files first, for which it waits
// less patiently than this does.
func (s *stored) openEngine(dir string) (eng engine.Engine, err error) {
	err = s.life.patiently(s.life.rootCtx, "opening the store", dir, func() error {
		eng, err = pebble.Open(dir, pebble.Options{FS: s.fs, Logger: s.lg, GiveUp: s.life.rootCtx.Done(),
			OnFailure: func(err error) { s.disks.storeFailed(dir, err) },
			OnSpace:   func(lack error) { s.disks.storeLacks(dir, lack) }})
		return err
	})
	return eng, err
}

// flush makes everything committed to the engine durable. On a full disk it waits for room,
// until ctx ends or the member fails.
func (s *stored) flush(ctx context.Context, eng engine.Engine) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life.rootCtx, cancel)()
	return eng.Flush(ctx)
}

// Rev returns the published revision.
func (s *stored) Rev() ids.Revision { return s.kv().PublishedRev() }

func (s *stored) mach() *apply.Machine { return s.machine.Load() }

// snapshot returns the current state. It keeps the store that it is of open: a snapshot that is
// installed meanwhile replaces it, but does not close it.
func (s *stored) snapshot() engine.Snapshot {
	for {
		mach := s.mach()
		snap := mach.Snapshot()
		if mach == s.mach() { // so it was taken before the store could be closed
			return snap
		}
		_ = snap.Close()
	}
}

func (s *stored) kv() *mvcc.Store { return s.mach().KV() }

// storeDir returns the directory of the store in use.
func (s *stored) storeDir() string { return *s.storeInUse.Load() }

func (s *stored) layout() datadir.Layout { return s.cfg.layout() }

func (s *stored) home() datadir.Home {
	return s.homeOf(identity{id: s.raftState.id, cluster: s.cluster.ID()}, s.log)
}

func (s *stored) homeOf(id identity, log *raftlog.Log) datadir.Home {
	return datadir.Home{Layout: s.layout(), Log: log, Member: id.id, Cluster: id.cluster, OpenEngine: s.openEngine, Logger: s.lg}
}

// flushLast makes the applied state durable, so that the next start need not replay it,
// unless the member has failed. It gives up if the store has no room: a flush would wait
// until the engine is closed.
func (s *stored) flushLast() {
	if s.life.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flushed := make(chan error, 1)
	go crash.Guarded(func() { flushed <- s.mach().Engine().Flush(ctx) })()
	poll := clock.NewTicker(s.cfg.Clock, 50*time.Millisecond)
	defer poll.Stop()
	err := error(nil)
	for waiting := true; waiting; {
		select {
		case err = <-flushed:
			waiting = false
		case <-poll.C:
			if s.disks.storeFull.Load() {
				err, waiting = raftlog.ErrNoSpace, false
			}
		}
	}
	if err != nil {
		s.lg.Warn("failed to flush the store; the log will be replayed at the next start", zap.Error(err))
	}
}
