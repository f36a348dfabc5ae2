package server

import (
	"context"

	"quorate/internal/apply"
	"quorate/internal/membership"
	"quorate/internal/replica"
	"quorate/internal/transport"
)

// applier applies committed entries, on a goroutine of its own, and tells the parts of
// the member that have to know.
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

	// noteApplied, of tests, sees every entry as it is about to be applied.
	noteApplied func(*apply.Entry)
}

// applyAll applies what is committed, all that waits as one batch within bounds.
func (a *applier) applyAll(context.Context) {
	for a.work.Wait(a.replica.halt) {
		for a.work.Due() {
			if err := a.work.Do(a.cfg.ApplyBatch); err != nil {
				waited := a.replica.rootCtx.Err() != nil && noRoom(err) // for room, and is told to stop
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

// termBegun lets the new leader look at the version of the cluster.
func (a *applier) termBegun() {
	select {
	case a.versions.decide <- struct{}{}:
	default:
	}
}

// reconfigured gives up what this member waits for if it was removed.
func (a *applier) reconfigured() {
	if a.cluster.IsRemoved(a.replica.id) {
		a.replica.giveUp()
	}
}

// memberChanged follows a membership change on the network.
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
