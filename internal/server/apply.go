package server

import (
	"context"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/replica"
	"quorate/internal/transport"
	"quorate/internal/watch"
)

// applier applies committed entries and tells everyone who has to know.
type applier struct {
	cfg      *Config
	replica  *localReplica
	cluster  *membership.Cluster
	lessor   *lease.Lessor
	hub      *watch.Hub
	tr       *transport.Transport
	disks    *disks
	driver   *driver
	slow     *slowLog
	watches  *Watches
	versions *Versions

	events []watch.Event // scratch
	// noteApplied, of tests, sees every entry as it is about to be applied.
	noteApplied func(*apply.Entry)
}

// applyAll applies committed entries, all that wait as one batch within bounds.
func (a *applier) applyAll(context.Context) {
	local := func(e *raftpb.Entry) *proposal.Pending { return replica.PendingOf(a.replica.props, e) }
	for {
		works := a.driver.applyq.take(a.replica.halt)
		if works == nil {
			return
		}
		for len(works) > 0 {
			var run *replica.Run
			if run, works = replica.NextRun(works, maxApplyBytes, local); run == nil {
				works[0].Swap()
				works = works[1:]
			} else if !a.applyRun(run) {
				return
			}
		}
	}
}

func (a *applier) applyRun(run *replica.Run) bool {
	for ents := run.Batch(a.cfg.ApplyBatch); ents != nil; ents = run.Batch(a.cfg.ApplyBatch) {
		if !a.applyEntries(run, ents) {
			return false
		}
	}
	return true
}

// applyEntries applies entries in one batch of the engine and tells everyone.
func (a *applier) applyEntries(run *replica.Run, ents []apply.Entry) bool {
	if a.noteApplied != nil {
		for i := range ents {
			a.noteApplied(&ents[i])
		}
	}
	start := a.cfg.Clock.Now()
	out, err := a.replica.mach().Apply(ents)
	if err != nil {
		waited := a.replica.rootCtx.Err() != nil && noRoom(err) // for room, and is told to stop
		if !waited && !a.disks.failing.Load() {
			a.replica.fail(err)
		}
		return false
	}
	a.slow.applyTook(ents, out, a.cfg.Clock.Now().Sub(start))
	a.settle(out, start)
	changes, acks := run.Applied(out)
	if len(changes)+len(acks) == 0 {
		return true
	}
	a.driver.event(func(in *replica.Input) {
		in.ConfChanges, in.Acks = append(in.ConfChanges, changes...), append(in.Acks, acks...)
		if len(changes) == 0 {
			return
		}
		in.Then = append(in.Then, func() {
			a.resolve(out.Results, start, true)
			if a.cluster.IsRemoved(a.replica.id) {
				a.replica.giveUp()
			}
		})
	})
	return true
}

// settle tells everyone who has to know what a batch has done: watchers first,
// so that a client which sees its answer finds its event already on the way.
func (a *applier) settle(out apply.Outcome, began time.Time) {
	if out.AuthChanged {
		a.watches.recheckWatches() // before what came after the change reaches anybody
	}
	if len(out.Changes) > 0 {
		a.publish(out)
	}
	for _, e := range out.Members {
		a.peerChanged(e)
	}
	a.resolve(out.Results, began, false)
	a.replica.reads.Applied(out.Applied)
	metrics.ServerProposalsAppliedTotal.Set(float64(out.Applied))
	if out.NewTerm && a.replica.isLeader() {
		a.lessor.Promote(a.cfg.Clock.Now(), a.cfg.electionTimeout())
		if !a.replica.isLeader() { // lost meanwhile, and demoted perhaps before it was promoted
			a.lessor.Demote()
		}
		select {
		case a.versions.decide <- struct{}{}:
		default:
		}
	}
	if out.QuotaExceeded {
		a.replica.raiseNoSpace()
	}
}

// resolve hands out the results of membership changes, or those of all else.
func (a *applier) resolve(results []apply.Result, began time.Time, reconfigured bool) {
	for _, r := range results {
		if r.Reconfigured == reconfigured {
			a.replica.props.Resolve(r.ID, proposal.Result{Resp: r.Resp, Err: r.Err, Done: r.Done, Began: began})
		}
	}
}

// publish hands the changes to the watchers. The slice is used again: the hub
// keeps the bytes, not the slice.
func (a *applier) publish(out apply.Outcome) {
	a.events = a.events[:0]
	for i := range out.Changes {
		c := &out.Changes[i]
		a.events = append(a.events, watch.Event{Key: c.Key, KV: c.KV, Mod: c.Rev.Main, Sub: c.Rev.Sub, Delete: c.Delete, Create: c.Create})
	}
	a.hub.Publish(out.Rev, a.events)
	clear(a.events)
	if cap(a.events) > maxScratchEvents {
		a.events = nil
	}
}

const maxScratchEvents = 4096

// peerChanged follows a membership change on the network.
func (a *applier) peerChanged(e membership.Effect) {
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
