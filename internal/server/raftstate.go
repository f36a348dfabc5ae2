package server

import (
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"quorate/internal/membership"
	"quorate/internal/transport"
)

// raftState is the state of consensus that any goroutine may read without asking the core.
// The driver writes it.
type raftState struct {
	cfg *Config
	tr  *transport.Transport
	id  uint64

	term, lead, commit atomic.Uint64
	acked              atomic.Uint64 // index up to which raft knows that entries are applied
	led                atomic.Pointer[leadership]
	leadLost           atomic.Int64                  // unix nanoseconds of the last loss of a leader
	leaderChange       atomic.Pointer[chan struct{}] // closed and replaced at each change of leader
	lastTick           atomic.Int64
	opened             time.Time
}

// leaderLine returns etcd's log line for a change of leader.
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

func (s *raftState) localID() zap.Field {
	return zap.String("local-member-id", membership.FormatID(s.id))
}

// MemberID returns the member's id.
func (s *raftState) MemberID() uint64 { return s.id }

// Term returns the current raft term.
func (s *raftState) Term() uint64 { return s.term.Load() }

// Leader returns the id of the leader, 0 if none is known.
func (s *raftState) Leader() uint64 { return s.lead.Load() }

func (s *raftState) isLeader() bool { return s.lead.Load() == s.id }

// timeoutError returns the most precise error, as far as this member knows the reason, for
// a request that began at start and timed out.
func (s *raftState) timeoutError(start time.Time) error {
	lost := time.Unix(0, s.leadLost.Load())
	if d := 2 * s.cfg.electionTimeout(); lost.After(start.Add(-d)) && !lost.After(start.Add(s.cfg.requestTimeout())) {
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	}
	if lead := s.lead.Load(); lead != 0 && lead != s.id && s.tr.ActiveSince(lead).IsZero() {
		return rpctypes.ErrGRPCTimeoutDueToConnectionLost
	}
	return rpctypes.ErrGRPCTimeout
}

// leadership is the last leader, and since when this member knows it.
type leadership struct {
	leader uint64
	since  time.Time
}

// CommittedIndex returns the highest index that is known to be committed.
func (s *raftState) CommittedIndex() uint64 { return s.commit.Load() }
