package server

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/crash"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/raftlog"
	"quorate/internal/raftnode"
	"quorate/internal/watch"
)

type logWork = raftnode.Append

// applyWork is a run of committed entries, or the exchange of the whole state
// between two runs.
type applyWork struct {
	raftnode.Apply
	swap func()
}

const (
	// maxApplyBytes bounds the entries that become one engine batch.
	maxApplyBytes = 4 << 20
	readRetry     = 500 * time.Millisecond
)

// The core has no goroutine of its own: whoever brings it something to do and
// finds it free drives it, until the inbox is empty. That spares two hand-offs
// between threads on the way of each request. What stays bounded by it: a driver
// works for others no longer than it takes to empty the inbox, and nothing in a
// step waits for a disk, a peer or a client.

// drive steps the core if nobody else does. When it returns, everything that was
// in the inbox at the call has been taken or will be by the present driver.
func (m *Member) drive() {
	for m.in.pending() {
		if !m.coreMu.TryLock() {
			return // the holder looks into the inbox again after it has let go
		}
		halted := m.empty()
		m.coreMu.Unlock()
		if halted {
			return
		}
	}
}

// empty steps the core until the inbox is empty, and reports whether it is driven
// no more. A panic ends the process before the lock is let go: the core may be
// anywhere between two states, and the goroutine may be one that others recover.
func (m *Member) empty() (halted bool) {
	defer crash.Guard()
	for !m.halted && m.in.pending() {
		m.step(m.in.take())
	}
	return m.halted
}

// event hands something to the core and drives it.
func (m *Member) event(f func(*Input)) {
	m.in.add(f)
	m.drive()
}

// step runs the core once and passes on what follows, in order. The caller holds
// coreMu.
func (m *Member) step(in Input) {
	eff := m.core.Step(m.cfg.Clock.Now(), in)
	if eff.LostLog != nil {
		m.halted = true // not one more vote or acknowledgement
		m.fail(fmt.Errorf("%w; remove this member from the cluster (etcdctl member remove %s), and add it again with an empty --data-dir",
			eff.LostLog, membership.FormatID(m.id)))
		return
	}
	m.tr.Send(m.modernise(m.completeSnapshots(eff.Send)))
	m.logq.push(eff.Append...)
	for _, a := range eff.Apply {
		m.applyq.push(applyWork{Apply: a})
	}
	m.follow(eff)
	if in.LogStall > 0 {
		m.reportStall(eff.Stall, in.LogStall)
	}
	for _, f := range in.Then {
		f()
	}
}

// ticker lets raft's time pass. It also picks up proposals that wait for a log
// write which does not end.
func (m *Member) ticker() {
	defer crash.Guard()
	defer m.loopWG.Done()
	ticker := time.NewTicker(m.cfg.Tick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			m.onTick()
			stall := m.watchLog()
			m.event(func(in *Input) { in.Ticks, in.LogStall = in.Ticks+1, stall })
		case <-m.halt:
			return
		}
	}
}

// proposed hands a request to the core. While the log is being written the
// request waits for the end of that: it could not be written before, and it
// shares a step, a message and a sync with all others that come meanwhile.
func (m *Member) proposed(p *proposal.Pending) {
	m.in.add(func(in *Input) { in.Propose = append(in.Propose, p) })
	if !m.logBusy.Load() {
		m.drive()
	}
}

func (m *Member) onTick() {
	now := m.cfg.Clock.Now()
	since := now.UnixNano() - m.lastTick.Swap(now.UnixNano())
	if others := len(m.cluster.Members()) - 1; since > 2*m.cfg.Tick.Nanoseconds() && others > 0 && m.isLeader() {
		// A tick is a heartbeat to everybody else; this one is late.
		metrics.ServerHeartbeatSendFailuresTotal.Add(float64(others))
		m.lg.Warn("leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk",
			zap.Duration("heartbeat-interval", m.cfg.Tick), zap.Duration("expected-duration", 2*m.cfg.Tick), zap.Duration("exceeded-duration", time.Duration(since)-2*m.cfg.Tick))
	}
	m.props.Expire(now, m.timeoutError)
}

// follow makes the new state of the core known.
func (m *Member) follow(eff Effects) {
	st := eff.State
	m.term.Store(st.Term)
	m.acked.Store(st.Applied)
	if st.Applied > m.wanted+m.cfg.SnapshotCount {
		m.wanted = st.Applied
		select {
		case m.truncate <- struct{}{}:
		default: // one is under way and will see what was applied
		}
	}
	if st.Commit > m.commit.Load() {
		m.commit.Store(st.Commit)
		metrics.ServerProposalsCommittedTotal.Set(float64(st.Commit))
	}
	old := m.lead.Swap(st.Lead)
	if old == st.Lead {
		return
	}
	if st.Lead == raft.None || old == m.id {
		m.leadLost.Store(m.cfg.Clock.Now().UnixNano())
	}
	if old == m.id {
		m.lessor.Demote()
	}
	if st.Lead != raft.None {
		m.led.Store(&leadership{st.Lead, m.cfg.Clock.Now()})
		metrics.ServerLeaderChangesSeenTotal.Inc()
	}
	metrics.ServerHasLeader.Set(boolGauge(st.Lead != raft.None))
	metrics.ServerIsLeader.Set(boolGauge(st.Lead == m.id))
	m.lg.Info("leader changed", zap.String("local-member-id", membership.FormatID(m.id)),
		zap.String("from", membership.FormatID(old)), zap.String("to", membership.FormatID(st.Lead)), zap.Uint64("term", st.Term))
	next := make(chan struct{})
	close(*m.leaderChange.Swap(&next))
}

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// writeLog makes appends durable, all that wait with one sync, and delivers
// what was waiting for that.
func (m *Member) writeLog() {
	defer crash.Guard()
	defer m.loopWG.Done()
	for {
		m.logBusy.Store(false)
		m.drive() // proposals that have waited for the log
		works := m.logq.take(m.halt)
		if works == nil {
			return
		}
		m.logBusy.Store(true)
		for len(works) > 0 {
			n := 0
			for n < len(works) && works[n].Snapshot == nil {
				n++
			}
			if n == 0 {
				if !m.install(works[0]) {
					return
				}
				n = 1
			} else if !m.appendAll(works[:n]) {
				return
			}
			m.deliver(works[:n])
			works = works[n:]
		}
	}
}

// appendAll writes the works in order; the last write syncs for all.
func (m *Member) appendAll(works []logWork) bool {
	defer m.timeLog()()
	sync := false
	for _, w := range works {
		sync = sync || w.MustSync
	}
	for i, w := range works {
		last := i == len(works)-1
		if !last && w.HardState == nil && len(w.Entries) == 0 {
			continue
		}
		for {
			err := m.log.Append(w.HardState, w.Entries, sync && last)
			if err == nil {
				break
			}
			if !errors.Is(err, raftlog.ErrNoSpace) {
				m.diskFailed(err)
				return false
			}
			if !m.waitForSpace(err) {
				return false
			}
		}
	}
	if m.diskFull.CompareAndSwap(true, false) {
		m.lg.Info("the raft log has room again; writes are accepted")
	}
	return true
}

// deliver sends what was waiting for durability.
func (m *Member) deliver(works []logWork) {
	var own, out []*raftpb.Message
	for _, w := range works {
		for _, r := range w.Responses {
			if r.GetTo() == m.id {
				own = append(own, r)
			} else {
				out = append(out, r)
			}
		}
	}
	m.tr.Send(out)
	if len(own) > 0 {
		m.event(func(in *Input) { in.Acks = append(in.Acks, own...) })
	}
}

// applyAll applies committed entries, all that wait as one batch within bounds.
func (m *Member) applyAll() {
	defer crash.Guard()
	defer m.loopWG.Done()
	for {
		works := m.applyq.take(m.halt)
		if works == nil {
			return
		}
		for len(works) > 0 {
			if works[0].swap != nil {
				works[0].swap()
				works = works[1:]
				continue
			}
			n, size := 0, 0
			for n < len(works) && works[n].swap == nil && (n == 0 || size < maxApplyBytes) {
				for _, e := range works[n].Entries {
					size += len(e.Data)
				}
				n++
			}
			if !m.applyBatch(works[:n]) {
				return
			}
			works = works[n:]
		}
	}
}

func (m *Member) applyBatch(works []applyWork) (ok bool) {
	total := 0
	for _, w := range works {
		total += len(w.Entries)
	}
	ents := make([]apply.Entry, 0, total)
	var acks []*raftpb.Message
	for _, w := range works {
		for _, e := range w.Entries {
			x := apply.Entry{Entry: e}
			if p := PendingOf(m.props, e); p != nil {
				x.Req, x.V2, x.Local = p.Req, p.V2, true
			}
			if m.noteApplied != nil {
				m.noteApplied(&x)
			}
			ents = append(ents, x)
		}
		acks = append(acks, w.Responses...)
	}
	limit := max(1, len(ents))
	if m.cfg.ApplyBatch > 0 {
		limit = m.cfg.ApplyBatch
	}
	for chunk := range slices.Chunk(ents, limit) {
		if !m.applyEntries(chunk) {
			return false
		}
	}
	if len(acks) > 0 {
		m.event(func(in *Input) { in.Acks = append(in.Acks, acks...) })
	}
	return true
}

// applyEntries applies entries in one batch of the engine and tells everyone.
func (m *Member) applyEntries(ents []apply.Entry) bool {
	start := m.cfg.Clock.Now()
	out, err := m.mach().Apply(ents)
	if err != nil {
		waited := m.rootCtx.Err() != nil && noRoom(err) // for room, and is told to stop
		if !waited && !m.failing.Load() {
			m.fail(err)
		}
		return false
	}
	m.applyTook(ents, out, m.cfg.Clock.Now().Sub(start))
	m.settle(out, start)
	if len(out.ConfChanges) == 0 {
		return true
	}
	m.event(func(in *Input) {
		in.ConfChanges = append(in.ConfChanges, out.ConfChanges...)
		in.Then = append(in.Then, func() {
			m.resolve(out.Results, start, true)
			if m.cluster.IsRemoved(m.id) {
				m.GiveUp()
			}
		})
	})
	return true
}

// settle tells everyone who has to know what a batch has done: watchers first,
// so that a client which sees its answer finds its event already on the way.
func (m *Member) settle(out apply.Outcome, began time.Time) {
	if out.AuthChanged {
		m.recheckWatches() // before what came after the change reaches anybody
	}
	if len(out.Changes) > 0 {
		m.publish(out)
	}
	for _, e := range out.Members {
		m.peerChanged(e)
	}
	m.resolve(out.Results, began, false)
	m.reads.Applied(out.Applied)
	metrics.ServerProposalsAppliedTotal.Set(float64(out.Applied))
	if out.NewTerm && m.isLeader() {
		m.lessor.Promote(m.cfg.Clock.Now(), m.cfg.electionTimeout())
		if !m.isLeader() { // lost meanwhile, and demoted perhaps before it was promoted
			m.lessor.Demote()
		}
		select {
		case m.decide <- struct{}{}:
		default:
		}
	}
	if out.QuotaExceeded {
		m.raiseNoSpace()
	}
}

// resolve hands out the results of membership changes, or those of all else.
func (m *Member) resolve(results []apply.Result, began time.Time, reconfigured bool) {
	for _, r := range results {
		if r.Reconfigured == reconfigured {
			m.props.Resolve(r.ID, proposal.Result{Resp: r.Resp, Err: r.Err, Done: r.Done, Began: began})
		}
	}
}

// publish hands the changes to the watchers. The slice is used again: the hub
// keeps the bytes, not the slice.
func (m *Member) publish(out apply.Outcome) {
	m.events = m.events[:0]
	for i := range out.Changes {
		c := &out.Changes[i]
		m.events = append(m.events, watch.Event{Key: c.Key, KV: c.KV, Mod: c.Rev.Main, Sub: c.Rev.Sub, Delete: c.Delete, Create: c.Create})
	}
	m.hub.Publish(out.Rev, m.events)
	clear(m.events)
	if cap(m.events) > maxScratchEvents {
		m.events = nil
	}
}

const maxScratchEvents = 4096
