package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// raft trusts its peers: it panics at some messages that no member sends, and believes
// others. So messages are checked before raft gets them: by Check without, and by Receive
// with the state of the node.

// ErrMalformed is wrapped by the errors for messages that no member sends.
var ErrMalformed = errors.New("raft message that no member sends")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

const (
	// maxNumber bounds terms and indexes: raft adds to them without a check for overflow.
	maxNumber = 1 << 62
	// maxContext bounds the context of heartbeats and read barriers, which is 8 bytes.
	maxContext = 1 << 10
)

// Check validates a message of a peer to the member with the given id. It refuses messages
// at which raft panics, and entries that could not be read back from the log.
func Check(m *raftpb.Message, id ids.Member) error {
	switch from := ids.Member(m.GetFrom()); {
	case ids.Member(m.GetTo()) != id:
		return malformed("to member %x", m.GetTo())
	case from == ids.NoMember, from == ids.Member(raft.LocalAppendThread), from == ids.Member(raft.LocalApplyThread), from == id && !passedOn(m):
		return malformed("from %s", from)
	case len(m.Responses) > 0:
		return malformed("with responses")
	case max(m.GetTerm(), m.GetLogTerm(), m.GetIndex(), m.GetCommit(), m.GetRejectHint()) >= maxNumber:
		return malformed("%v with a term or index of 2^62 or more", m.GetType())
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

// passedOn reports whether a member forwards messages of this kind to the leader under the
// name of the original sender, which may have become the leader meanwhile.
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
		return malformed("type %v is not for peers", t)
	}
	return nil
}

// checkProposal refuses entries that must not enter a log. Whether a membership change is
// allowed now is decided by the leader.
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

// checkEntries checks that the entries of a MsgApp follow its index without gaps and can be
// read back from the log.
func checkEntries(m *raftpb.Message) error {
	if (m.GetIndex() == 0) != (m.GetLogTerm() == 0) || m.GetLogTerm() > m.GetTerm() {
		return malformed("entries of term %d after entry %d of term %d", m.GetTerm(), m.GetIndex(), m.GetLogTerm())
	}
	next, term := m.GetIndex()+1, m.GetLogTerm()
	for _, e := range m.Entries {
		if e.GetIndex() != next || e.GetTerm() < term || e.GetTerm() > m.GetTerm() {
			return malformed("entry %d of term %d, want entry %d of term %d to %d",
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

// checkSnapshot refuses snapshots whose configuration raft cannot use.
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

// LostLogError is returned when the log of this member ends before an entry that it has
// acknowledged: its directory was emptied, or it is an old copy. Further votes and
// acknowledgements of the member could lose committed entries, so it must stop.
type LostLogError struct {
	Leader ids.Member
	// Acked is an index that this member has acknowledged to the leader, Last the last
	// index of its log.
	Acked, Last ids.Index
}

func (e *LostLogError) Error() string {
	return fmt.Sprintf("the raft log ends at entry %d, but this member has acknowledged entry %d to member %s: part of its data directory is lost, or it is an old copy",
		e.Last, e.Acked, e.Leader)
}

// Receive processes a message of a peer that Check has accepted. A message that does not fit
// the state of the node is dropped with an error.
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
	term, leading := ids.Term(st.HardState.GetTerm()), st.RaftState == raft.StateLeader
	switch m.GetType() {
	case raftpb.MsgHeartbeat:
		// A leader sends no commit index above what the follower has acknowledged in the
		// leader's term.
		if ids.Term(m.GetTerm()) < term || ids.Term(m.GetTerm()) == term && leading || m.GetCommit() <= st.HardState.GetCommit() {
			return nil
		}
		if last := n.lastIndex(ids.Index(m.GetCommit())); ids.Index(m.GetCommit()) > last {
			return &LostLogError{Leader: ids.Member(m.GetFrom()), Acked: ids.Index(m.GetCommit()), Last: last}
		}
	case raftpb.MsgAppResp:
		if leading && ids.Term(m.GetTerm()) == term && !m.GetReject() {
			if last := n.lastIndex(ids.Index(m.GetIndex())); ids.Index(m.GetIndex()) > last {
				return malformed("acknowledgement of entry %d, the leader's last is %d", m.GetIndex(), last)
			}
		}
	case raftpb.MsgHeartbeatResp:
		// raft counts the rounds of reads and does not expect one that it has not started.
		if leading && ids.Term(m.GetTerm()) == term && len(m.Context) > 0 {
			if round := binary.LittleEndian.Uint64(m.Context); n.readTerm != term || round > n.readRound {
				return malformed("answer to round %d of reads, the newest is %d", round, n.readRound)
			}
		}
	case raftpb.MsgTransferLeader:
		if !leading && ids.Term(m.GetTerm()) == term {
			return malformed("leadership transfer requested from a member that does not lead") // raft panics when it forwards it
		}
	}
	return nil
}

// lastIndex returns the last index of the log. It may be outdated, but then it is at least
// want.
func (n *Node) lastIndex(want ids.Index) ids.Index {
	if n.moved || want > n.last {
		n.collect()
	}
	return n.last
}
