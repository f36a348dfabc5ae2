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
	"quorate/internal/descriptors"
	"quorate/internal/metrics"
	"quorate/internal/raftlog"
)

// Everything that writes waits while a disk is full, or no file descriptor is left: the raft log
// and small files in the functions below, the store in its engine (engine/pebble). A step that
// found no room has either done nothing or can be repeated safely. Files that are opened to be
// read wait for a descriptor in their file system (descriptors.Waiting). Any other disk error ends the member; a
// leader hands over first.

// diskRetry is how often a write that found no room is retried.
const diskRetry = 500 * time.Millisecond

// transferPause delays the next attempt after a snapshot could not be stored or made.
// Raft would retry with every heartbeat, and each attempt takes room that everything else
// waits for. Only tests change it.
var transferPause = 5 * time.Second

// disks is the state of a member's disks.
type disks struct {
	cfg       *Config
	lg        *zap.Logger
	life      *life
	raftState *raftState
	handOver  func() // transfers leadership, and blocks until that is done

	diskFull  atomic.Bool // the log finds no room
	storeFull atomic.Bool // the store finds no room; soon apply would have to wait
	scarce    atomic.Bool // what one of them lacked last is not room, but a file descriptor
	failing   atomic.Bool // a disk has failed, and the member will shut down
}

// waitForSpace blocks until the log write should be retried. Nothing of the failed write
// is in the log or was acknowledged, so waiting loses nothing; meanwhile new writes are
// rejected (propose.go).
func (d *disks) waitForSpace(err error) bool {
	d.scarce.Store(descriptors.Exhausted(err))
	if d.diskFull.CompareAndSwap(false, true) {
		if descriptors.Exhausted(err) {
			d.lg.Error("too many open files for the raft log: writes are refused until some are closed; "+descriptors.WayOut, zap.String("dir", d.cfg.logDir()), zap.Error(err))
		} else {
			metrics.DiskFull.WithLabelValues(metrics.FullLog).Set(1)
			d.lg.Error("no room for the raft log: writes are refused until there is; free space on its disk",
				zap.String("dir", d.cfg.logDir()), zap.Error(err))
		}
	}
	select {
	case <-clock.NewTimer(d.cfg.Clock, diskRetry).C:
		return true
	case <-d.life.halt:
		return false
	}
}

// storeFailed is called by the engine, on any of its goroutines, when it cannot write.
func (d *disks) storeFailed(dir string, err error) {
	d.diskFailed(fmt.Errorf("the store in %s: %w", dir, err))
}

// diskFailed ends the member because of a disk error. A leader hands over first, which
// needs neither the raft log nor the store, so that the cluster does not have to detect
// the loss. It returns at once, and is safe for concurrent use.
func (d *disks) diskFailed(err error) {
	if !d.failing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		if d.raftState.lead.Load() != raft.None && d.raftState.isLeader() {
			d.lg.Error("disk failure: transferring leadership before this member exits",
				zap.Stringer("local-member-id", d.raftState.id), zap.Error(err))
			d.handOver()
		}
		d.life.fail(err)
	}()
}

// noRoom reports whether a step on the log or next to it may be retried.
func noRoom(err error) bool {
	return errors.Is(err, raftlog.ErrNoSpace) || vfs.IsNoSpaceError(err) || descriptors.Exhausted(err)
}

// storeLacks is called by the engine when a write to the store in dir begins to wait, with the
// reason, and with nil when it has found what it waited for.
func (d *disks) storeLacks(dir string, lack error) {
	d.scarce.Store(descriptors.Exhausted(lack))
	d.storeFull.Store(lack != nil)
	full := 0.0
	switch {
	case descriptors.Exhausted(lack):
		d.lg.Error("too many open files for the store: writes are refused until some are closed; "+descriptors.WayOut, zap.String("dir", dir))
	case lack != nil:
		full = 1
		d.lg.Error("no room for the store: writes are refused until there is; free space on its disk", zap.String("dir", dir))
	default:
		d.lg.Info("the store has room again; writes are accepted", zap.String("dir", dir))
	}
	metrics.DiskFull.WithLabelValues(metrics.FullStore).Set(full)
}

// NoRoom says why all writes are rejected: a disk is full, or no file descriptor is left. It
// returns "" if they are not.
func (d *disks) NoRoom() string {
	switch {
	case !d.diskFull.Load() && !d.storeFull.Load():
		return ""
	case d.scarce.Load():
		return "too many open files: all writes are refused until some are closed"
	}
	return "a disk is full: all writes are refused until it has room"
}
