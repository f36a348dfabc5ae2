package server

import (
	"context"
	"errors"

	"quorate/internal/apply"
	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/replica"
	"quorate/internal/transport"
)

// applier applies committed entries, on its own goroutine, and notifies the parts of the
// member that depend on them.
type applier struct {
	cfg      *Config
	replica  *localReplica
	cluster  *membership.Cluster
	tr       *transport.Transport
	disks    *disks
	slow     *slowLog
	watches  *Watches
	versions *Versions
	work     *replica.Applier

	// noteApplied is for tests: it is called with each entry before it is applied.
	noteApplied func(*apply.Entry)
}

// applyAll applies committed entries, all pending ones in one batch within its bounds.
func (a *applier) applyAll(context.Context) {
	for a.work.Wait(a.replica.halt) {
		for a.work.Due() {
			if err := a.work.Do(a.cfg.ApplyBatch); err != nil {
				waited := a.replica.rootCtx.Err() != nil && (noRoom(err) || errors.Is(err, engine.ErrClosed)) // for room, and shuts down
				if !waited && !a.disks.failing.Load() {
					a.replica.fail(err)
				}
				return
			}
		}
	}
}

func (a *applier) apply(ents []apply.Entry) (apply.Outcome, error) {
	if a.noteApplied != nil {
		for i := range ents {
			a.noteApplied(&ents[i])
		}
	}
	return a.replica.mach().Apply(ents)
}

// termBegun triggers a new leader's decision about the cluster version.
func (a *applier) termBegun() {
	select {
	case a.versions.decide <- struct{}{}:
	default:
	}
}

// reconfigured cancels all waits if this member was removed.
func (a *applier) reconfigured() {
	if a.cluster.IsRemoved(a.replica.id) {
		a.replica.giveUp()
	}
}

// memberChanged updates the transport after a membership change.
func (a *applier) memberChanged(e membership.Effect) {
	id := e.Member.ID
	switch {
	case e.Action == membership.Removed && id == a.replica.id:
		a.replica.background(func() {
			// Stay long enough for the leader to learn that the entry is applied here.
			if a.replica.pause(a.replica.rootCtx, removalDelay) == nil {
				a.replica.fail(ErrRemoved)
			}
		})
	case id == a.replica.id:
	case e.Action == membership.Removed:
		a.tr.RemovePeer(id)
	case e.Action == membership.Updated:
		a.tr.UpdatePeer(id, e.Member.PeerURLs)
	case e.Action == membership.Added:
		a.tr.AddPeer(id, e.Member.PeerURLs)
	}
}
