package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/membership"
	"quorate/internal/task"
)

// life is how a member ends: by Stop, or by itself when it cannot go on. Whoever waits
// for something selects on it, and what runs in the background ends with it.
type life struct {
	lg        *zap.Logger
	clock     clock.Clock
	dataDir   string
	raftState *raftState
	waits     func(status string) // tells what a start waits for
	giveUp    func()              // ends what waits for the log or for a quorum

	tasks    *task.Group     // work in the background
	rootCtx  context.Context // of tasks: ends when Stop begins
	loops    *task.Group     // ticks, log and apply
	halt     <-chan struct{} // of loops: closed when they may end
	stop     chan struct{}   // closed first: refuse new work
	failOnce sync.Once
	failed   chan struct{}
	failErr  error // set before failed is closed
}

// patiently takes a step that writes below dir, and takes it again while it finds no
// room there, until ctx ends.
func (l *life) patiently(ctx context.Context, what, dir string, step func() error) error {
	for waiting := false; ; {
		err := step()
		if err == nil {
			if waiting {
				l.lg.Info("the disk has room again", zap.String("for", what), zap.String("dir", dir))
			}
			return nil
		}
		if !vfs.IsNoSpaceError(err) || ctx.Err() != nil {
			return err
		}
		if !waiting {
			waiting = true
			l.lg.Error("no room on the disk: waiting until there is; free space on it", zap.String("for", what), zap.String("dir", dir), zap.Error(err))
			l.waits("waiting for room on the disk of " + dir)
		}
		t := clock.NewTimer(l.clock, diskRetry)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

func (l *life) pause(ctx context.Context, d time.Duration) error {
	t := clock.NewTimer(l.clock, d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return rpctypes.ErrGRPCTimeout
		}
		return ctx.Err()
	case <-l.stop:
		return rpctypes.ErrGRPCStopped
	case <-l.failed: // what is waited for may never come
		return rpctypes.ErrGRPCStopped
	}
}

// background runs f beside the requests and lets Stop wait for it. It is for
// work that ends when rootCtx does. It reports false, and does not run f, once the
// member stops.
func (l *life) background(f func()) bool { return l.tasks.Go(func(context.Context) { f() }) }

// Failed closes when the member cannot go on; Err tells why.
func (l *life) Failed() <-chan struct{} { return l.failed }

// Err returns the reason after Failed has closed.
func (l *life) Err() error {
	select {
	case <-l.failed:
		return l.failErr
	default:
		return nil
	}
}

func (l *life) fail(err error) {
	l.failOnce.Do(func() {
		l.failErr = err
		defer close(l.failed)
		l.giveUp()
		if errors.Is(err, ErrRemoved) { // as it was told to, which is no error of anybody
			l.lg.Warn("server error", zap.String("local-member-id", membership.FormatID(l.raftState.id)), zap.Error(err))
			l.lg.Warn("data-dir used by this member must be removed", zap.String("data-dir", l.dataDir))
			return
		}
		l.lg.Error("member cannot go on", zap.String("local-member-id", membership.FormatID(l.raftState.id)), zap.Error(err))
	})
}
