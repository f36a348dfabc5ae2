package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"quorate/internal/metrics"
	"quorate/internal/raftlog"
	"quorate/internal/replica"
)

// logWriter has the raft log: it writes what the core hands out, and truncates it.
type logWriter struct {
	cfg       *Config
	lg        *zap.Logger
	replica   *localReplica
	disks     *disks
	driver    *driver
	installer *installer
	sender    *sender
	log       *raftlog.Log

	logMu    sync.Mutex             // one at a time replaces or truncates the log
	mark     atomic.Uint64          // index up to which the log is truncated
	truncate chan struct{}          // capacity 1: a truncation is due
	logSince atomic.Int64           // when the log write under way began, as time since opened; 0 without one
	stalled  atomic.Pointer[string] // what was said about the log write that hangs
}

// writeLog makes appends durable, all that wait with one sync, and delivers
// what was waiting for that.
func (l *logWriter) writeLog(context.Context) {
	for {
		l.driver.logBusy.Store(false)
		l.driver.drive() // proposals that have waited for the log
		works := l.driver.logq.take(l.replica.halt)
		if works == nil {
			return
		}
		l.driver.logBusy.Store(true)
		for len(works) > 0 {
			var w replica.Write
			w, works = replica.NextWrite(works)
			if !l.write(&w) {
				return
			}
		}
	}
}

// write does one piece of work for the log and delivers what was waiting for it.
func (l *logWriter) write(w *replica.Write) bool {
	if w.Snapshot() == nil {
		if !l.writeGroup(w) {
			return false
		}
		l.driver.deliver(w.Messages(l.replica.id))
		return true
	}
	i := w.Install()
	if !l.installer.install(i) {
		return false
	}
	l.driver.deliver(i.Messages(l.replica.id))
	return true
}

// writeGroup makes a group of writes durable.
func (l *logWriter) writeGroup(w *replica.Write) bool {
	defer l.timeLog()()
	for {
		err := w.To(l.log)
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

// truncateLog forgets log entries that every crash can do without: the engine
// is flushed past them and slow followers still find CatchUpEntries. raft may read
// what it does not count as applied, also while the store has it already, so its
// index decides.
func (l *logWriter) truncateLog(ctx context.Context) {
	err := l.replica.patiently(ctx, "truncation of the raft log", l.cfg.logDir(), l.truncateOnce)
	if err != nil && ctx.Err() == nil {
		l.disks.diskFailed(fmt.Errorf("truncate raft log: %w", err))
	}
}

func (l *logWriter) truncateOnce() error {
	mach := l.replica.mach()
	l.lg.Info("triggering snapshot", l.replica.localID(), zap.Uint64("local-member-applied-index", l.replica.acked.Load()),
		zap.Uint64("local-member-snapshot-index", l.mark.Load()), zap.Uint64("local-member-snapshot-count", l.cfg.SnapshotCount), zap.Bool("snapshot-forced", false))
	applied := l.replica.acked.Load() // the store has applied as much, or a snapshot has just replaced it
	err := l.replica.flush(l.replica.rootCtx, mach.Engine())
	l.logMu.Lock()
	defer l.logMu.Unlock()
	if l.replica.mach() != mach || l.replica.rootCtx.Err() != nil {
		return nil // a snapshot has replaced the store, and the log with it; or the member stops
	}
	if err != nil {
		// Nothing is lost: the entries stay in the log. A full disk is the usual
		// cause and ends when there is room.
		l.lg.Error("cannot flush the store, so the raft log grows; is its disk full?", zap.String("dir", l.replica.storeDir()), zap.Error(err))
		return nil
	}
	l.lg.Info("saved snapshot to disk", zap.Uint64("snapshot-index", applied))
	index, ok := replica.TruncateTo(applied, l.mark.Load(), l.cfg.CatchUpEntries)
	if !ok || l.sender.snapshots.Load() > 0 {
		return nil // a follower that is being sent a snapshot needs what follows it
	}
	if err := l.replica.home().Truncate(index, mach.ConfState()); err != nil {
		return err
	}
	l.mark.Store(index)
	l.lg.Info("compacted Raft logs", zap.Uint64("compact-index", index), zap.Uint64("applied-index", applied))
	return nil
}
