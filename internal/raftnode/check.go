package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// Raft trusts its peers and panics, or believes, where they say what no member says. So
// messages are looked at before raft sees them: Check looks at the message alone,
// Receive at the message and the state of the node.

// ErrMalformed is the cause of refusing a message that no member sends.
var ErrMalformed = errors.New("raft message that no member sends")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

const (
	// maxNumber bounds terms and indexes: raft adds to them without a look.
	maxNumber = 1 << 62
	// maxContext bounds the context of heartbeats and read barriers, which is 8 bytes.
	maxContext = 1 << 10
)

// Check refuses a message of a peer to the member with the given id that raft would not
// survive, or would write to the log though nobody could read it there.
func Check(m *raftpb.Message, id uint64) error {
	switch from := m.GetFrom(); {
	case m.GetTo() != id:
		return malformed("to member %x", m.GetTo())
	case from == raft.None, from == raft.LocalAppendThread, from == raft.LocalApplyThread, from == id && !passedOn(m):
		return malformed("from %x", from)
	case len(m.Responses) > 0:
		return malformed("with responses")
	case max(m.GetTerm(), m.GetLogTerm(), m.GetIndex(), m.GetCommit(), m.GetRejectHint()) >= maxNumber:
		return malformed("%v with a number above all that there are", m.GetType())
	case len(m.Context) > maxContext:
		return malformed("%v with a context of %d bytes", m.GetType(), len(m.Context))
	}
	switch t := m.GetType(); t {
	case raftpb.MsgProp, raftpb.MsgReadIndex:
		if m.GetTerm() != 0 {
			return malformed("%v of term %d", t, m.GetTerm()) // raft panics when it forwards it
		}
	default:
		if m.GetTerm() == 0 {
			return malformed("%v without a term", t) // raft would take it for its own
		}
	}
	return checkBody(m)
}

// passedOn reports whether a message is of a kind that a member passes on to the leader
// in the name of whom it came from. That one may have become the leader meanwhile.
func passedOn(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgProp || m.GetType() == raftpb.MsgReadIndex
}

func checkBody(m *raftpb.Message) error {
	switch t := m.GetType(); t {
	case raftpb.MsgProp:
		return checkProposal(m.Entries)
	case raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		if len(m.Entries) != 1 || len(m.Entries[0].Data) > maxContext {
			return malformed("%v with %d entries", t, len(m.Entries))
		}
	case raftpb.MsgHeartbeatResp:
		if n := len(m.Context); n != 0 && n != 8 {
			return malformed("heartbeat context of %d bytes", n)
		}
	case raftpb.MsgApp:
		return checkEntries(m)
	case raftpb.MsgSnap:
		return checkSnapshot(m)
	case raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgHeartbeat, raftpb.MsgTransferLeader,
		raftpb.MsgTimeoutNow, raftpb.MsgPreVote, raftpb.MsgPreVoteResp:
	default:
		return malformed("type %v does not travel", t)
	}
	return nil
}

// checkProposal refuses what must not enter a log. Whether a change of the membership
// may be made now, the leader decides.
func checkProposal(ents []*raftpb.Entry) error {
	if len(ents) == 0 {
		return malformed("proposal without an entry")
	}
	for _, e := range ents {
		switch {
		case len(e.Data) == 0:
			return malformed("proposal of an empty entry")
		case e.GetType() == raftpb.EntryConfChange:
			if _, err := membership.DecodeChange(e.Data); err != nil {
				return fmt.Errorf("%w: %w", ErrMalformed, err)
			}
		case e.GetType() != raftpb.EntryNormal:
			return malformed("proposal of type %v", e.GetType())
		}
	}
	return nil
}

// checkEntries checks that the entries of a MsgApp go on from its index and can be read
// back from the log.
func checkEntries(m *raftpb.Message) error {
	if (m.GetIndex() == 0) != (m.GetLogTerm() == 0) || m.GetLogTerm() > m.GetTerm() {
		return malformed("entries of term %d behind entry %d of term %d", m.GetTerm(), m.GetIndex(), m.GetLogTerm())
	}
	next, term := m.GetIndex()+1, m.GetLogTerm()
	for _, e := range m.Entries {
		if e.GetIndex() != next || e.GetTerm() < term || e.GetTerm() > m.GetTerm() {
			return malformed("entry %d of term %d where %d follows in term %d to %d",
				e.GetIndex(), e.GetTerm(), next, term, m.GetTerm())
		}
		if err := raftlog.CheckEntry(e); err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrMalformed, e.GetIndex(), err)
		}
		switch e.GetType() {
		case raftpb.EntryConfChange:
			if err := proto.Unmarshal(e.Data, &raftpb.ConfChange{}); err != nil {
				return fmt.Errorf("%w: entry %d: %w", ErrMalformed, e.GetIndex(), err)
			}
		case raftpb.EntryConfChangeV2:
			return malformed("entry %d is a joint configuration change, which etcd never writes", e.GetIndex())
		}
		next, term = next+1, e.GetTerm()
	}
	return nil
}

// checkSnapshot refuses snapshots whose configuration raft cannot take over.
func checkSnapshot(m *raftpb.Message) error {
	meta := m.GetSnapshot().GetMetadata()
	cs := meta.GetConfState()
	switch {
	case meta.GetIndex() == 0 || meta.GetIndex() >= maxNumber:
		return malformed("snapshot of entry %d", meta.GetIndex())
	case meta.GetTerm() == 0 || meta.GetTerm() > m.GetTerm():
		return malformed("snapshot of term %d in term %d", meta.GetTerm(), m.GetTerm())
	case len(cs.GetVoters()) == 0:
		return malformed("snapshot without voters")
	case len(cs.GetVotersOutgoing()) > 0 || len(cs.GetLearnersNext()) > 0 || cs.GetAutoLeave():
		return malformed("snapshot of a joint configuration")
	}
	ids := slices.Sorted(slices.Values(slices.Concat(cs.GetVoters(), cs.GetLearners())))
	if ids[0] == raft.None || len(slices.Compact(slices.Clone(ids))) != len(ids) || ids[len(ids)-1] >= raft.LocalApplyThread {
		return malformed("snapshot with members %x", ids)
	}
	return nil
}

// LostLogError says that the log of this member ends before what it has acknowledged:
// the directory was emptied, or it is an old copy. What the member says and votes
// since then may undo what others were told, so it must end.
type LostLogError struct {
	Leader uint64
	// Acked is an index that the leader knows to be in the log of this member, Last
	// where the log ends.
	Acked, Last uint64
}

func (e *LostLogError) Error() string {
	return fmt.Sprintf("the raft log ends at entry %d, but this member has acknowledged entry %d to member %s: part of its data directory is lost, or it is an old copy",
		e.Last, e.Acked, membership.FormatID(e.Leader))
}

// Receive takes a message of a peer that Check has passed. One that makes no sense here
// is dropped with an error.
func (n *Node) Receive(m *raftpb.Message) error {
	if err := n.checkAgainst(m); err != nil {
		return err
	}
	n.moved = n.moved || len(m.Entries) > 0
	err := n.Step(m)
	if err == nil && m.GetType() == raftpb.MsgProp {
		n.noteChange(m)
	}
	return err
}

// checkAgainst compares a message with the state of the node.
func (n *Node) checkAgainst(m *raftpb.Message) error {
	st := n.rn.BasicStatus()
	term, leading := st.HardState.GetTerm(), st.RaftState == raft.StateLeader
	switch m.GetType() {
	case raftpb.MsgHeartbeat:
		// A leader tells no commit index above what the follower has acknowledged in
		// its term. Others it does not reach.
		if m.GetTerm() < term || m.GetTerm() == term && leading || m.GetCommit() <= st.HardState.GetCommit() {
			return nil
		}
		if last := n.lastIndex(m.GetCommit()); m.GetCommit() > last {
			return &LostLogError{Leader: m.GetFrom(), Acked: m.GetCommit(), Last: last}
		}
	case raftpb.MsgAppResp:
		if leading && m.GetTerm() == term && !m.GetReject() {
			if last := n.lastIndex(m.GetIndex()); m.GetIndex() > last {
				return malformed("acknowledgement of entry %d where the leader has %d", m.GetIndex(), last)
			}
		}
	case raftpb.MsgHeartbeatResp:
		// Raft counts the rounds of reads and does not expect one that it has not begun.
		if leading && m.GetTerm() == term && len(m.Context) > 0 {
			if round := binary.LittleEndian.Uint64(m.Context); n.readTerm != term || round > n.readRound {
				return malformed("answer to round %d of reads, there were %d", round, n.readRound)
			}
		}
	case raftpb.MsgTransferLeader:
		if !leading && m.GetTerm() == term {
			return malformed("request to hand over to one that does not lead") // raft panics when it forwards it
		}
	}
	return nil
}

// lastIndex returns the last index of the log, exactly if it is below want.
func (n *Node) lastIndex(want uint64) uint64 {
	if n.moved || want > n.last {
		n.collect()
	}
	return n.last
}
