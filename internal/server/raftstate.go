package server

import (
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/transport"
)

// raftState is the state of consensus that any goroutine may read without asking the core.
// The driver writes it.
type raftState struct {
	cfg *Config
	tr  *transport.Transport
	id  ids.Member

	term, lead, commit atomic.Uint64
	acked              atomic.Uint64 // index up to which raft knows that entries are applied
	led                atomic.Pointer[leadership]
	leadLost           atomic.Int64                  // unix nanoseconds of the last loss of a leader
	leaderChange       atomic.Pointer[chan struct{}] // closed and replaced at each change of leader
	lastTick           atomic.Int64
	opened             time.Time
}

// leaderLine returns etcd's log line for a change of leader.
func leaderLine(id, old, lead ids.Member, term ids.Term) string {
	switch {
	case lead == ids.NoMember:
		return fmt.Sprintf("raft.node: %s lost leader %s at term %d", id, old, term)
	case old == ids.NoMember:
		return fmt.Sprintf("raft.node: %s elected leader %s at term %d", id, lead, term)
	}
	return fmt.Sprintf("raft.node: %s changed leader from %s to %s at term %d", id, old, lead, term)
}

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *raftState) localID() zap.Field {
	return zap.Stringer("local-member-id", s.id)
}

// MemberID returns the member's id.
func (s *raftState) MemberID() ids.Member { return s.id }

// Term returns the current raft term.
func (s *raftState) Term() ids.Term { return ids.Term(s.term.Load()) }

// Leader returns the id of the leader, 0 if none is known.
func (s *raftState) Leader() ids.Member { return ids.Member(s.lead.Load()) }

func (s *raftState) isLeader() bool { return ids.Member(s.lead.Load()) == s.id }

// timeoutError returns the most precise error, as far as this member knows the reason, for
// a request that began at start and timed out.
func (s *raftState) timeoutError(start time.Time) error {
	lost := time.Unix(0, s.leadLost.Load())
	if d := 2 * s.cfg.electionTimeout(); lost.After(start.Add(-d)) && !lost.After(start.Add(s.cfg.requestTimeout())) {
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	}
	if lead := ids.Member(s.lead.Load()); lead != 0 && lead != s.id && s.tr.ActiveSince(lead).IsZero() {
		return rpctypes.ErrGRPCTimeoutDueToConnectionLost
	}
	return rpctypes.ErrGRPCTimeout
}

// leadership is the last leader, and since when this member knows it.
type leadership struct {
	leader ids.Member
	since  time.Time
}

// CommittedIndex returns the highest index that is known to be committed.
func (s *raftState) CommittedIndex() ids.Index { return ids.Index(s.commit.Load()) }
