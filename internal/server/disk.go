package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/raftlog"
)

// A full disk is waited for, wherever something is written: the raft log and the
// small files by the steps below, the store by its engine (engine/pebble). Each step
// that found no room has done nothing, or nothing that doing it again would harm.
// A disk that fails in another way ends the member; a leader hands over first.

// diskRetry is how often a write that found no room is tried again.
const diskRetry = 500 * time.Millisecond

// transferPause keeps a snapshot that could not be stored or made from being tried
// again at once: raft would repeat it with every heartbeat, and what it writes until
// it fails takes the room that everything else waits for. Only tests change it.
var transferPause = 5 * time.Second

// patiently takes a step that writes below dir, and takes it again while it finds no
// room there, until ctx ends.
func (m *Member) patiently(ctx context.Context, what, dir string, step func() error) error {
	for waiting := false; ; {
		err := step()
		if err == nil {
			if waiting {
				m.lg.Info("the disk has room again", zap.String("for", what), zap.String("dir", dir))
			}
			return nil
		}
		if !vfs.IsNoSpaceError(err) || ctx.Err() != nil {
			return err
		}
		if !waiting {
			waiting = true
			m.lg.Error("no room on the disk: waiting until there is; free space on it", zap.String("for", what), zap.String("dir", dir), zap.Error(err))
			if m.machine.Load() == nil { // later StartStatus tells it
				m.working("waiting for room on the disk of " + dir)
			}
		}
		t := time.NewTimer(diskRetry)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// waitForSpace pauses until the log should be tried again. Nothing of the write
// that failed is in the log and nobody was told that it is, so waiting loses
// nothing; meanwhile new writes are refused (put.go).
func (m *Member) waitForSpace(err error) bool {
	if m.diskFull.CompareAndSwap(false, true) {
		metrics.DiskFull.WithLabelValues(metrics.FullLog).Set(1)
		m.lg.Error("no room for the raft log: writes are refused until there is; free space on its disk",
			zap.String("dir", m.cfg.logDir()), zap.Error(err))
	}
	select {
	case <-time.After(diskRetry):
		return true
	case <-m.halt:
		return false
	}
}

// pauseTransfer lets time pass after a snapshot could not be written to the local
// disk.
func (m *Member) pauseTransfer(ctx context.Context, err error) {
	if path := (*fs.PathError)(nil); !vfs.IsNoSpaceError(err) && !errors.As(err, &path) {
		return // it was the connection
	}
	if err := m.pause(ctx, transferPause); err != nil {
		return // it ends anyway
	}
}

// storeFailed is told by the engine, on any of its goroutines, that it cannot write.
func (m *Member) storeFailed(dir string, err error) {
	m.diskFailed(fmt.Errorf("the store in %s: %w", dir, err))
}

// diskFailed ends the member because of a disk that fails. A leader hands over first,
// so that the cluster does not have to notice that it is gone: neither the raft log nor
// the store is needed for that. It returns at once, and may be called at any time.
func (m *Member) diskFailed(err error) {
	if !m.failing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		if m.lead.Load() != raft.None && m.isLeader() {
			m.lg.Error("the disk fails: handing over leadership before this member ends",
				zap.String("local-member-id", membership.FormatID(m.id)), zap.Error(err))
			m.HandOver()
		}
		m.fail(err)
	}()
}

// noRoom reports whether a step on the log or beside it may be taken again.
func noRoom(err error) bool { return errors.Is(err, raftlog.ErrNoSpace) || vfs.IsNoSpaceError(err) }
