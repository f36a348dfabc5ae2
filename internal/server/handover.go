package server

import (
	"context"
	"time"

	"go.uber.org/zap"

	"quorate/internal/membership"
)

// HandOver transfers leadership, if this member has it, before it stops: to the
// voter that has been connected longest, or else to the next one. It returns when
// another member leads and has been told what was sent here, or when nobody takes
// over within the request timeout.
func (m *Member) HandOver() {
	if !m.isLeader() || m.Err() != nil {
		m.lg.Info("skipped leadership transfer; local server is not leader", m.localID(), zap.String("current-leader-member-id", membership.FormatID(m.Leader())))
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.cfg.requestTimeout())
	defer cancel()
	tried := map[uint64]bool{m.id: true}
	for m.isLeader() && m.Err() == nil {
		to, since := m.longestConnected(tried)
		if to == 0 {
			return
		}
		tried[to] = true
		if err := m.handOverTo(ctx, to, since); err != nil {
			m.lg.Warn("leadership transfer failed", m.localID(), zap.String("transferee-member-id", membership.FormatID(to)), zap.Error(err))
		}
	}
	// The others learn who leads from its first message. What they send here until
	// then is passed on, else their clients would wait for an answer in vain.
	_ = m.pause(ctx, m.cfg.Tick)
}

// longestConnected returns the voter, but for those in without, that has been
// reachable for the longest time, and since when; 0 if none is.
func (m *Member) longestConnected(without map[uint64]bool) (best uint64, since time.Time) {
	for _, id := range m.cluster.VoterIDs() {
		if t := m.tr.ActiveSince(id); !without[id] && !t.IsZero() && (best == 0 || t.Before(since)) {
			best, since = id, t
		}
	}
	return best, since
}

// handOverTo transfers leadership to a voter. Raft gives a transfer up after an
// election timeout, and it is over before when the connection to that voter, which
// has been there since, is lost: it may be stopping as well.
func (m *Member) handOverTo(ctx context.Context, to uint64, since time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.electionTimeout()+2*m.cfg.Tick)
	defer cancel()
	go func() {
		poll := time.NewTicker(m.cfg.Tick)
		defer poll.Stop()
		for {
			select {
			case <-poll.C:
				if !m.tr.ActiveSince(to).Equal(since) {
					cancel()
				}
			case <-m.failed:
				cancel()
			case <-ctx.Done():
				return
			}
		}
	}()
	return m.transfer(ctx, to)
}
