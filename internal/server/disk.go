package server

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"quorate/internal/clock"
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

// disks is what is known of the disks of a member.
type disks struct {
	cfg       *Config
	lg        *zap.Logger
	life      *life
	raftState *raftState
	handOver  func() // gives leadership away, as long as that takes

	diskFull  atomic.Bool // the log finds no room
	storeFull atomic.Bool // the store finds no room; soon apply would have to wait
	failing   atomic.Bool // a disk fails, and the member will
}

// waitForSpace pauses until the log should be tried again. Nothing of the write
// that failed is in the log and nobody was told that it is, so waiting loses
// nothing; meanwhile new writes are refused (propose.go).
func (d *disks) waitForSpace(err error) bool {
	if d.diskFull.CompareAndSwap(false, true) {
		metrics.DiskFull.WithLabelValues(metrics.FullLog).Set(1)
		d.lg.Error("no room for the raft log: writes are refused until there is; free space on its disk",
			zap.String("dir", d.cfg.logDir()), zap.Error(err))
	}
	select {
	case <-clock.NewTimer(d.cfg.Clock, diskRetry).C:
		return true
	case <-d.life.halt:
		return false
	}
}

// storeFailed is told by the engine, on any of its goroutines, that it cannot write.
func (d *disks) storeFailed(dir string, err error) {
	d.diskFailed(fmt.Errorf("the store in %s: %w", dir, err))
}

// diskFailed ends the member because of a disk that fails. A leader hands over first,
// so that the cluster does not have to notice that it is gone: neither the raft log nor
// the store is needed for that. It returns at once, and may be called at any time.
func (d *disks) diskFailed(err error) {
	if !d.failing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		if d.raftState.lead.Load() != raft.None && d.raftState.isLeader() {
			d.lg.Error("the disk fails: handing over leadership before this member ends",
				zap.String("local-member-id", membership.FormatID(d.raftState.id)), zap.Error(err))
			d.handOver()
		}
		d.life.fail(err)
	}()
}

// noRoom reports whether a step on the log or beside it may be taken again.
func noRoom(err error) bool { return errors.Is(err, raftlog.ErrNoSpace) || vfs.IsNoSpaceError(err) }

// NoRoom reports whether all writes are refused because a disk is full.
func (d *disks) NoRoom() bool { return d.diskFull.Load() || d.storeFull.Load() }
