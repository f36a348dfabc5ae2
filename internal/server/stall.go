package server

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"quorate/internal/membership"
	"quorate/internal/replica"
)

// logStall returns how long the log write that is under way has taken.
func (m *Member) logStall() time.Duration {
	since := m.logSince.Load()
	if since == 0 {
		return 0
	}
	return m.cfg.Clock.Now().Sub(m.opened) - time.Duration(since)
}

// watchLog is called once a tick and returns for how long a log write has been
// seen to hang. A process that did not run for a while finds its clock far ahead;
// that is no fault of the disk, so only ticks that were seen count.
func (m *Member) watchLog() time.Duration {
	since := m.logSince.Load()
	if since == 0 || since != m.watched {
		m.watched, m.watchedTicks = since, 0
		return 0
	}
	m.watchedTicks++
	return min(m.logStall(), time.Duration(m.watchedTicks)*m.cfg.Tick)
}

// timeLog notes that a log write begins; the function that it returns, that the
// write has ended.
func (m *Member) timeLog() (end func()) {
	m.logSince.Store(max(1, int64(m.cfg.Clock.Now().Sub(m.opened))))
	return func() {
		took := m.logStall()
		m.logSince.Store(0)
		if m.stalled.Swap(nil) != nil {
			m.lg.Info("the disk of the raft log has finished the write that hung", zap.String("dir", m.cfg.logDir()), zap.Duration("took", took))
		}
	}
}

// reportStall says once a stall what it has led to. The caller holds coreMu.
func (m *Member) reportStall(s replica.Stall, took time.Duration) {
	if took <= m.cfg.electionTimeout() {
		return
	}
	say := func(kind, text string, more ...zap.Field) {
		if said := m.stalled.Load(); said != nil && *said == kind {
			return
		}
		m.stalled.Store(&kind)
		m.lg.Warn("the disk of the raft log has not finished a write for longer than the election timeout: "+text,
			append(more, zap.String("dir", m.cfg.logDir()), zap.Duration("took", took))...)
	}
	switch {
	case s.HandOver != raft.None:
		kind := "to " + membership.FormatID(s.HandOver)
		say(kind, "leadership is handed over; look after the disk of this member",
			zap.String("local-member-id", membership.FormatID(m.id)), zap.String("to", membership.FormatID(s.HandOver)))
	case s.Alone:
		say("alone", "this member goes on leading, as no majority of others has proved that its disks work; writes wait for the disk")
	case m.Leader() != m.id:
		say("behind", "writes and linearizable reads on this member time out until it has; the others serve them")
	}
}
