package sim

import (
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// ballot is one vote of one member.
type ballot struct {
	member ids.Member
	term   ids.Term
}

// promised is what a member has told others, or counted itself, as durable.
type promised struct {
	term ids.Term
	vote ids.Member // vote is the vote in term, 0 for none
}

// promise records and checks a message that waited for durability. No member votes for two
// candidates in a term, not even across a crash.
func (n *node) promise(m *raftpb.Message) {
	p := &n.said
	if term := n.log.HardState().GetTerm(); m.GetTerm() > term && !m.GetReject() && (m.GetType() == raftpb.MsgVoteResp || m.GetType() == raftpb.MsgAppResp) {
		n.w.fail("member %d answers with %v in term %d, and its log is in term %d", n.index, m.GetType(), m.GetTerm(), term)
	}
	switch m.GetType() {
	case raftpb.MsgVoteResp:
		if m.GetReject() {
			return
		}
		b := ballot{n.id, ids.Term(m.GetTerm())}
		if old, voted := n.w.votes[b]; voted && old != ids.Member(m.GetTo()) {
			n.w.fail("member %d votes for %s in term %d, in which it has voted for %s", n.index, ids.Member(m.GetTo()), b.term, old)
		}
		n.w.votes[b] = ids.Member(m.GetTo())
		if ids.Term(m.GetTerm()) >= p.term {
			*p = promised{ids.Term(m.GetTerm()), ids.Member(m.GetTo())}
		}
		n.w.unsettle(n)
	case raftpb.MsgAppResp:
		if ids.Term(m.GetTerm()) > p.term {
			*p = promised{term: ids.Term(m.GetTerm())}
		}
	}
}

// checkPromises compares what a member has promised with what is on its disk.
func (n *node) checkPromises() {
	hs, p := n.log.HardState(), n.said
	switch {
	case n.outdated: // a test has replaced its disk
	case ids.Term(hs.GetTerm()) < p.term:
		n.w.fail("member %d has answered in term %d and starts in term %d", n.index, p.term, hs.GetTerm())
	case ids.Term(hs.GetTerm()) == p.term && p.vote != 0 && ids.Member(hs.GetVote()) != p.vote:
		n.w.fail("member %d has voted for %s in term %d and starts with a vote for %s", n.index, p.vote, p.term, ids.Member(hs.GetVote()))
	}
}

// unsettle sometimes crashes a member that has just voted.
func (w *World) unsettle(n *node) {
	if w.calm || w.faults.Crashes == 0 || w.rng.IntN(16) > 0 {
		return
	}
	life := n.life
	w.after(w.between(0, w.faults.MaxDelay), func() {
		if n.life == life && !n.down && !w.calm {
			n.crash(n.disk.crashed())
			w.after(w.between(10e6, w.faults.Outage), n.start)
		}
	})
}
