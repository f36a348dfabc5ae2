package replica

import (
	"sync/atomic"
	"time"

	"quorate/internal/apply"
	"quorate/internal/lease"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/readindex"
	"quorate/internal/watch"
)

// Settler delivers the results of applied entries to watchers, readers and callers, and
// makes sure that only the leader's lessor expires leases.
type Settler struct {
	door   *Door
	self   uint64
	props  *proposal.Table
	reads  *readindex.Batcher
	hub    *watch.Hub
	lessor *lease.Lessor
	extend time.Duration
	lead   atomic.Uint64 // the leader as of the last step

	events []watch.Event // scratch
}

// maxScratchEvents bounds the capacity of events that is retained between two batches.
const maxScratchEvents = 4096

func (s *Settler) leading() bool { return s.lead.Load() == s.self }

// follow records the current leader.
func (s *Settler) follow(lead uint64) {
	if old := s.lead.Swap(lead); old == s.self && lead != old {
		s.lessor.Demote()
	}
}

// settle delivers the results of a batch: to watchers first, so that when a client has its
// answer, the event is already queued.
func (s *Settler) settle(out apply.Outcome, began time.Time) {
	if out.AuthChanged {
		s.door.AuthChanged() // before anyone sees the effect of a later entry
	}
	if len(out.Changes) > 0 {
		s.publish(out)
	}
	for _, e := range out.Members {
		s.door.MemberChanged(e)
	}
	s.resolve(out.Results, began, false)
	s.reads.Applied(out.Applied)
	metrics.ServerProposalsAppliedTotal.Set(float64(out.Applied))
	if out.NewTerm && s.leading() {
		s.lessor.Promote(s.door.Now(), s.extend)
		if !s.leading() { // leadership was lost meanwhile; follow may have demoted before Promote
			s.lessor.Demote()
		}
		s.door.TermBegun()
	}
	if out.QuotaExceeded {
		s.door.NoSpace()
	}
}

// reconfigured delivers the results of a batch's membership changes, once raft uses them.
func (s *Settler) reconfigured(out apply.Outcome, began time.Time) {
	s.resolve(out.Results, began, true)
	s.door.Reconfigured()
}

// Restored is called after the whole state was replaced. applied is the last entry in it.
func (s *Settler) Restored(hist watch.History, applied uint64) {
	s.hub.Restore(hist)
	s.door.AuthChanged()
	s.reads.Applied(applied)
}

// resolve delivers the results of membership changes, or all others.
func (s *Settler) resolve(results []apply.Result, began time.Time, reconfigured bool) {
	for _, r := range results {
		if r.Reconfigured == reconfigured {
			s.props.Resolve(r.ID, proposal.Result{Resp: r.Resp, Err: r.Err, Done: r.Done, Began: began})
		}
	}
}

// publish passes the changes to the watchers. The slice is reused: the hub retains the
// bytes, not the slice.
func (s *Settler) publish(out apply.Outcome) {
	s.events = s.events[:0]
	for i := range out.Changes {
		c := &out.Changes[i]
		s.events = append(s.events, watch.Event{Key: c.Key, KV: c.KV, Mod: c.Rev.Main, Sub: c.Rev.Sub, Delete: c.Delete, Create: c.Create})
	}
	s.hub.Publish(out.Rev, s.events)
	clear(s.events)
	if cap(s.events) > maxScratchEvents {
		s.events = nil
	}
}
