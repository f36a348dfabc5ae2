package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/metrics"
	"quorate/internal/raftlog"
	"quorate/internal/replica"
)

// logWriter does the work on the raft log, on its own goroutine, and truncates the log.
type logWriter struct {
	cfg       *Config
	lg        *zap.Logger
	replica   *localReplica
	disks     *disks
	driver    *driver
	installer *installer
	sender    *sender
	work      *replica.Writer

	truncate chan struct{}          // capacity 1: a truncation is due
	logSince atomic.Int64           // start of the log write in flight, as time since opened; 0 without one
	stalled  atomic.Pointer[string] // what was logged about the log write that hangs
}

// writeLog does the log work of the core, all pending appends with one sync.
func (l *logWriter) writeLog(context.Context) {
	for {
		l.driver.logBusy.Store(false)
		l.driver.drive() // takes proposals that waited for the log
		if !l.work.Wait(l.replica.halt) {
			return
		}
		l.driver.logBusy.Store(true)
		for job := l.work.Due(); job != replica.Idle; job = l.work.Due() {
			do := l.installer.install
			if job == replica.Append {
				do = l.append
			}
			if !do() {
				return
			}
		}
	}
}

// append makes a group of writes durable, and then delivers what depends on it.
func (l *logWriter) append() bool {
	if !l.write() {
		return false
	}
	l.work.Done()
	return true
}

func (l *logWriter) write() bool {
	defer l.timeLog()()
	for {
		err := l.work.Do(l.replica.rootCtx)
		if err == nil {
			break
		}
		if !errors.Is(err, raftlog.ErrNoSpace) {
			l.disks.diskFailed(err)
			return false
		}
		if !l.disks.waitForSpace(err) {
			return false
		}
	}
	if l.disks.diskFull.CompareAndSwap(true, false) {
		metrics.DiskFull.WithLabelValues(metrics.FullLog).Set(0)
		l.lg.Info("the raft log has room again; writes are accepted")
	}
	return true
}

// truncationDue triggers a truncation; one in progress will see what was applied.
func (l *logWriter) truncationDue() {
	select {
	case l.truncate <- struct{}{}:
	default:
	}
}

// truncateLog removes log entries that no recovery needs.
func (l *logWriter) truncateLog(ctx context.Context) {
	err := l.replica.patiently(ctx, "truncation of the raft log", l.cfg.logDir(), l.truncateOnce)
	if err != nil && ctx.Err() == nil {
		l.disks.diskFailed(fmt.Errorf("truncate raft log: %w", err))
	}
}

func (l *logWriter) truncateOnce() error {
	mach := l.replica.mach()
	l.lg.Info("triggering snapshot", l.replica.localID(), zap.Uint64("local-member-applied-index", l.replica.acked.Load()),
		zap.Uint64("local-member-snapshot-index", uint64(l.work.Mark())), zap.Uint64("local-member-snapshot-count", l.cfg.SnapshotCount), zap.Bool("snapshot-forced", false))
	applied := ids.Index(l.replica.acked.Load()) // the store has applied at least this, or a snapshot has just replaced it
	err := l.replica.flush(l.replica.rootCtx, mach.Engine())
	replaced := func() bool { return l.replica.mach() != mach || l.replica.rootCtx.Err() != nil }
	if replaced() {
		return nil // a snapshot replaced the store, and the log with it; or the member shuts down
	}
	if err != nil {
		// Nothing is lost: the entries stay in the log. The usual cause is a full disk,
		// and the next truncation succeeds when there is room again.
		l.lg.Error("cannot flush the store, so the raft log grows; is its disk full?", zap.String("dir", l.replica.storeDir()), zap.Error(err))
		return nil
	}
	l.lg.Info("saved snapshot to disk", zap.Uint64("snapshot-index", uint64(applied)))
	index, err := l.work.Truncate(applied, mach.ConfState(), func() bool {
		return replaced() || l.sender.snapshots.Load() > 0 // a follower that receives a snapshot needs the entries after it
	})
	if err == nil && index > 0 {
		l.lg.Info("compacted Raft logs", zap.Uint64("compact-index", uint64(index)), zap.Uint64("applied-index", uint64(applied)))
	}
	return err
}
