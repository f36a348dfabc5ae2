package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/descriptors"
	"quorate/internal/task"
)

// life is the end of a member: by Stop, or because it cannot continue. Everything that
// waits selects on it, and background tasks end with it.
type life struct {
	lg        *zap.Logger
	clock     clock.Clock
	dataDir   string
	raftState *raftState
	waits     func(status string) // reports what a start waits for
	giveUp    func()              // ends waits for the log or for a quorum

	tasks    *task.Group     // background work
	rootCtx  context.Context // of tasks: canceled when Stop begins
	loops    *task.Group     // ticks, log and apply
	halt     <-chan struct{} // of loops: closed when they may return
	stop     chan struct{}   // closed first: reject new work
	failOnce sync.Once
	failed   chan struct{}
	failErr  error // set before failed is closed
}

// patiently runs a step that writes below dir, and retries it while there is no room, or no
// file descriptor, until ctx ends.
func (l *life) patiently(ctx context.Context, what, dir string, step func() error) error {
	for waiting := false; ; {
		err := step()
		if err == nil {
			if waiting {
				l.lg.Info("the disk can be written again", zap.String("for", what), zap.String("dir", dir))
			}
			return nil
		}
		if !noRoom(err) || ctx.Err() != nil {
			return err
		}
		if !waiting {
			waiting = true
			text, status := "no room on the disk: waiting until there is; free space on it", "waiting for room on the disk of "+dir
			if descriptors.Exhausted(err) {
				text, status = "too many open files: waiting until some are closed; "+descriptors.WayOut, "waiting for file descriptors"
			}
			l.lg.Error(text, zap.String("for", what), zap.String("dir", dir), zap.Error(err))
			l.waits(status)
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
	case <-l.failed: // the entry may never be applied
		return rpctypes.ErrGRPCStopped
	}
}

// background runs f concurrently with requests; Stop waits for it. f must return when
// rootCtx ends. It returns false, and does not run f, while the member shuts down.
func (l *life) background(f func()) bool { return l.tasks.Go(func(context.Context) { f() }) }

// Failed is closed when the member cannot continue; Err returns the reason.
func (l *life) Failed() <-chan struct{} { return l.failed }

// Err returns the reason after Failed was closed.
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
		if errors.Is(err, ErrRemoved) { // the cluster has removed it: not a failure
			l.lg.Warn("server error", zap.Stringer("local-member-id", l.raftState.id), zap.Error(err))
			l.lg.Warn("data-dir used by this member must be removed", zap.String("data-dir", l.dataDir))
			return
		}
		l.lg.Error("member cannot continue", zap.Stringer("local-member-id", l.raftState.id), zap.Error(err))
	})
}
