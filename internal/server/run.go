package server

import (
	"errors"
	"fmt"
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
	"quorate/internal/replica"
	"quorate/internal/watch"
)

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
	for m.in.Pending() {
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
	for !m.halted && m.in.Pending() {
		m.step(m.in.Take())
	}
	return m.halted
}

// event hands something to the core and drives it.
func (m *Member) event(f func(*replica.Input)) {
	m.in.Add(f)
	m.drive()
}

// step runs the core once and passes on what follows, in order. The caller holds
// coreMu.
func (m *Member) step(in replica.Input) {
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
		m.applyq.push(replica.Work{Apply: a})
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
			m.event(func(in *replica.Input) { in.Ticks, in.LogStall = in.Ticks+1, stall })
		case <-m.halt:
			return
		}
	}
}

// proposed hands a request to the core. While the log is being written the
// request waits for the end of that: it could not be written before, and it
// shares a step, a message and a sync with all others that come meanwhile.
func (m *Member) proposed(p *proposal.Pending) {
	m.in.Add(func(in *replica.Input) { in.Propose = append(in.Propose, p) })
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
func (m *Member) follow(eff replica.Effects) {
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
	m.lg.Named("raft").Info(leaderLine(m.id, old, st.Lead, st.Term))
	next := make(chan struct{})
	close(*m.leaderChange.Swap(&next))
}

// leaderLine is what etcd says when another member leads.
func leaderLine(id, old, lead, term uint64) string {
	switch {
	case lead == raft.None:
		return fmt.Sprintf("raft.node: %x lost leader %x at term %d", id, old, term)
	case old == raft.None:
		return fmt.Sprintf("raft.node: %x elected leader %x at term %d", id, lead, term)
	}
	return fmt.Sprintf("raft.node: %x changed leader from %x to %x at term %d", id, old, lead, term)
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
			var w replica.Write
			w, works = replica.NextWrite(works)
			if !m.write(&w) {
				return
			}
		}
	}
}

// write does one piece of work for the log and delivers what was waiting for it.
func (m *Member) write(w *replica.Write) bool {
	if w.Snapshot() == nil {
		if !m.writeGroup(w) {
			return false
		}
		m.deliver(w.Messages(m.id))
		return true
	}
	i := w.Install()
	if !m.install(i) {
		return false
	}
	m.deliver(i.Messages(m.id))
	return true
}

// writeGroup makes a group of writes durable.
func (m *Member) writeGroup(w *replica.Write) bool {
	defer m.timeLog()()
	for {
		err := w.To(m.log)
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
	if m.diskFull.CompareAndSwap(true, false) {
		metrics.DiskFull.WithLabelValues(metrics.FullLog).Set(0)
		m.lg.Info("the raft log has room again; writes are accepted")
	}
	return true
}

// deliver sends what was waiting for durability.
func (m *Member) deliver(own, out []*raftpb.Message) {
	m.tr.Send(out)
	if len(own) > 0 {
		m.event(func(in *replica.Input) { in.Acks = append(in.Acks, own...) })
	}
}

// applyAll applies committed entries, all that wait as one batch within bounds.
func (m *Member) applyAll() {
	defer crash.Guard()
	defer m.loopWG.Done()
	local := func(e *raftpb.Entry) *proposal.Pending { return replica.PendingOf(m.props, e) }
	for {
		works := m.applyq.take(m.halt)
		if works == nil {
			return
		}
		for len(works) > 0 {
			var run *replica.Run
			if run, works = replica.NextRun(works, maxApplyBytes, local); run == nil {
				works[0].Swap()
				works = works[1:]
			} else if !m.applyRun(run) {
				return
			}
		}
	}
}

func (m *Member) applyRun(run *replica.Run) bool {
	for ents := run.Batch(m.cfg.ApplyBatch); ents != nil; ents = run.Batch(m.cfg.ApplyBatch) {
		if !m.applyEntries(run, ents) {
			return false
		}
	}
	return true
}

// applyEntries applies entries in one batch of the engine and tells everyone.
func (m *Member) applyEntries(run *replica.Run, ents []apply.Entry) bool {
	if m.noteApplied != nil {
		for i := range ents {
			m.noteApplied(&ents[i])
		}
	}
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
	changes, acks := run.Applied(out)
	if len(changes)+len(acks) == 0 {
		return true
	}
	m.event(func(in *replica.Input) {
		in.ConfChanges, in.Acks = append(in.ConfChanges, changes...), append(in.Acks, acks...)
		if len(changes) == 0 {
			return
		}
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
