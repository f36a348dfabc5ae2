package raftnode

import (
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// Each message between members costs two system calls and wakes two goroutines, most of
// which is the same for one entry and for a hundred. So messages that raft would send one
// after the other travel as one, and an acknowledgement that says nothing new stays here.
// To the receiver it is as if the network had lost the others, which raft tolerates.

// lookBack bounds how many messages are searched for one that can be continued.
const lookBack = 8

// join appends m to send, or to the MsgApp before it to the same member if m continues it
// and both fit into limit bytes of entries.
func join(send []*raftpb.Message, m *raftpb.Message, limit int) []*raftpb.Message {
	if m.GetType() != raftpb.MsgApp {
		return append(send, m)
	}
	for i := len(send) - 1; i >= max(0, len(send)-lookBack); i-- {
		p := send[i]
		if p.GetType() != raftpb.MsgApp || p.GetTo() != m.GetTo() {
			continue
		}
		if !continues(p, m) || len(p.Entries) > 0 && len(m.Entries) > 0 && dataBytes(p)+dataBytes(m) > limit {
			break
		}
		if len(p.Entries) == 0 {
			p.Entries = m.Entries
		} else if k := len(p.Entries); len(m.Entries) > 0 {
			p.Entries = append(p.Entries[:k:k], m.Entries...) // raft may still use the slice
		}
		p.Commit = m.Commit
		return send
	}
	return append(send, m)
}

// continues reports whether the MsgApp m begins where p ends. The commit index of m is at
// least that of p: raft has created it later.
func continues(p, m *raftpb.Message) bool {
	index, term := p.GetIndex(), p.GetLogTerm()
	if k := len(p.Entries); k > 0 {
		index, term = p.Entries[k-1].GetIndex(), p.Entries[k-1].GetTerm()
	}
	return m.GetTerm() == p.GetTerm() && m.GetIndex() == index && m.GetLogTerm() == term && m.GetCommit() >= p.GetCommit()
}

func dataBytes(m *raftpb.Message) int {
	n := 0
	for _, e := range m.Entries {
		n += len(e.Data)
	}
	return n
}

// acks is what this member has acknowledged to a leader.
type acks struct {
	to     ids.Member
	term   ids.Term
	index  ids.Index
	silent bool // an acknowledgement of index was left out
}

func isAck(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgAppResp && !m.GetReject()
}

// leaveOut removes acknowledgements from a that say nothing new. A leader sends its new
// commit index without entries to members that have acknowledged all of them, and has no use
// for another acknowledgement. But if the first one was lost, the leader sends a message
// without entries because it needs another. So after one that was left out, the next is
// sent, unless the log has grown in between.
func (s *acks) leaveOut(a *Append) {
	commitOnly := a.HardState != nil && !a.MustSync
	kept := a.Responses[:0]
	for _, m := range a.Responses {
		if isAck(m) {
			switch {
			case ids.Member(m.GetTo()) != s.to || ids.Term(m.GetTerm()) != s.term || ids.Index(m.GetIndex()) > s.index:
				*s = acks{to: ids.Member(m.GetTo()), term: ids.Term(m.GetTerm()), index: ids.Index(m.GetIndex())}
			case commitOnly && !s.silent:
				s.silent = true
				continue
			}
		}
		kept = append(kept, m)
	}
	clear(a.Responses[len(kept):])
	a.Responses = kept
}

// NewestAcks removes acknowledgements from messages that are about to be sent together if
// another one to the same member covers them.
func NewestAcks(ms []*raftpb.Message) []*raftpb.Message {
	kept := ms[:0]
	for _, m := range ms {
		if isAck(m) && len(kept) > 0 {
			if p := kept[len(kept)-1]; isAck(p) && p.GetTo() == m.GetTo() && p.GetTerm() == m.GetTerm() {
				if m.GetIndex() > p.GetIndex() {
					kept[len(kept)-1] = m
				}
				continue
			}
		}
		kept = append(kept, m)
	}
	clear(ms[len(kept):])
	return kept
}
