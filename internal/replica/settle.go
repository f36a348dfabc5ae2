package replica

import (
	"sync/atomic"
	"time"

	"quorate/internal/apply"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/watch"
)

// Settler delivers the results of applied entries to watchers, readers and callers, and
// makes sure that only the leader's lessor expires leases.
type Settler struct {
	env    *Env
	self   ids.Member
	props  *proposal.Table
	reads  *readindex.Batcher
	hub    *watch.Hub
	lessor *lease.Lessor
	extend time.Duration
	// leading is the term in which this member leads as of the last step, 0 if it does not.
	leading atomic.Uint64
	begun   ids.Term // the newest term in which the lessor was promoted; used by settle alone

	events []watch.Event // scratch
}

// maxScratchEvents bounds the capacity of events that is retained between two batches.
const maxScratchEvents = 4096

// follow records whether this member leads.
func (s *Settler) follow(st raftnode.State) {
	now := ids.Term(0)
	if st.Lead == s.self {
		now = st.Term
	}
	if old := ids.Term(s.leading.Swap(uint64(now))); old != 0 && now != old {
		s.lessor.Demote()
	}
}

// beginTerm promotes the lessor when the first entry of the term in which this member leads
// is applied: only then has it seen all that former leaders have done to leases. An entry
// without content of an earlier term says nothing, and neither does a second one of this
// term: leases would start again, and checkpoints in flight would be forgotten.
func (s *Settler) beginTerm(term ids.Term) {
	if term == 0 || term == s.begun || ids.Term(s.leading.Load()) != term {
		return
	}
	s.begun = term
	s.lessor.Promote(s.env.Now(), s.extend)
	if ids.Term(s.leading.Load()) != term { // leadership was lost meanwhile; follow may have demoted before Promote
		s.lessor.Demote()
	}
	s.env.TermBegun()
}

// settle delivers the results of a batch: to watchers first, so that when a client has its
// answer, the event is already queued.
func (s *Settler) settle(out apply.Outcome, began time.Time) {
	if out.AuthChanged {
		s.env.AuthChanged() // before anyone sees the effect of a later entry
	}
	if len(out.Changes) > 0 {
		s.publish(out)
	}
	for _, e := range out.Members {
		s.env.MemberChanged(e)
	}
	s.resolve(out.Results, began, false)
	s.reads.Applied(out.Applied)
	metrics.ServerProposalsAppliedTotal.Set(float64(out.Applied))
	s.beginTerm(out.NewTerm)
	if out.QuotaExceeded {
		s.env.NoSpace()
	}
}

// reconfigured delivers the results of a batch's membership changes, once raft uses them.
func (s *Settler) reconfigured(out apply.Outcome, began time.Time) {
	s.resolve(out.Results, began, true)
	s.env.Reconfigured()
}

// Restored is called after the whole state was replaced. applied is the last entry in it.
func (s *Settler) Restored(hist watch.History, applied ids.Index) {
	s.env.AuthChanged() // before anyone sees a key of the new state
	s.hub.Restore(hist)
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
