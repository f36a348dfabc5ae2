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

// Settler tells everyone who has to know what was applied, and lets the leader, and
// nobody else, count the time of leases.
type Settler struct {
	door   *Door
	self   uint64
	props  *proposal.Table
	reads  *readindex.Batcher
	hub    *watch.Hub
	lessor *lease.Lessor
	extend time.Duration
	lead   atomic.Uint64 // as the core said last

	events []watch.Event // scratch
}

// maxScratchEvents bounds the events that are kept room for between two batches.
const maxScratchEvents = 4096

func (s *Settler) leading() bool { return s.lead.Load() == s.self }

// follow takes note of who leads now.
func (s *Settler) follow(lead uint64) {
	if old := s.lead.Swap(lead); old == s.self && lead != old {
		s.lessor.Demote()
	}
}

// settle tells of a batch: watchers first, so that a client which sees its answer finds
// its event already on the way.
func (s *Settler) settle(out apply.Outcome, began time.Time) {
	if out.AuthChanged {
		s.door.AuthChanged() // before what came after the change reaches anybody
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
		if !s.leading() { // lost meanwhile, and demoted perhaps before it was promoted
			s.lessor.Demote()
		}
		s.door.TermBegun()
	}
	if out.QuotaExceeded {
		s.door.NoSpace()
	}
}

// reconfigured tells of the membership changes of a batch once raft works with them.
func (s *Settler) reconfigured(out apply.Outcome, began time.Time) {
	s.resolve(out.Results, began, true)
	s.door.Reconfigured()
}

// Restored tells everyone of a state that was replaced as a whole, in which applied is
// the last entry.
func (s *Settler) Restored(hist watch.History, applied uint64) {
	s.hub.Restore(hist)
	s.door.AuthChanged()
	s.reads.Applied(applied)
}

// resolve hands out the results of membership changes, or those of all else.
func (s *Settler) resolve(results []apply.Result, began time.Time, reconfigured bool) {
	for _, r := range results {
		if r.Reconfigured == reconfigured {
			s.props.Resolve(r.ID, proposal.Result{Resp: r.Resp, Err: r.Err, Done: r.Done, Began: began})
		}
	}
}

// publish hands the changes to the watchers. The slice is used again: the hub keeps the
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
