// Package raftnode wraps a raft.RawNode: inputs go in, effects come out as values.
//
// In: ticks, messages of peers, entries to propose, read barriers, completions
// of the log and of apply. Out: messages to send, entries to write, entries to
// apply, confirmed reads. Always true: it does no I/O, reads no clock and starts no
// goroutine; the same inputs give the same effects. It is not safe for concurrent use.
//
// Ordering that the caller has to keep: it processes the Appends one after the
// other, each durable before its Responses are delivered; likewise the Applies.
// Messages in Send may be sent at once. A Response to this member is passed to
// Step, one to a peer goes to the transport.
//
// There is one applied index: State.Applied, up to which the caller has acknowledged
// entries as applied. raft may read later entries again, so the log must not be
// truncated beyond it. raft's configuration has an index of its own: that of the newest
// membership change that raft was told of, or of the newest snapshot that raft has
// accepted. Such a snapshot may overtake entries that are not applied yet. A membership
// change among them is part of the snapshot, so it must not be passed to raft again.
package raftnode

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// ErrDropped is returned by Propose when raft did not accept the entry and it is certainly
// in no log: there is no leader, or leadership is being transferred.
var ErrDropped = raft.ErrProposalDropped

// The limits are etcd's, so peers see the same message sizes from members of both kinds.
const (
	maxSizePerMsg   = 1 << 20
	maxInflightMsgs = 512
	// maxInflightBytes bounds the bytes in flight to one follower, in addition to the
	// number of messages: entries may be large.
	maxInflightBytes = 32 << 20
	// maxApplyBytes bounds the committed entries that are handed out and not yet
	// acknowledged by apply.
	maxApplyBytes = 8 << 20
	// maxPropBytes bounds one proposal message; a follower forwards it as one message.
	maxPropBytes = 1 << 20
)

// Config holds the settings of a node. ID, Storage and the ticks are required.
type Config struct {
	ID             ids.Member
	ElectionTicks  int
	HeartbeatTicks int
	PreVote        bool
	Storage        raft.Storage
	Applied        ids.Index // index that the state machine already holds
	Logger         raft.Logger
	Limits         Limits // the zero value has etcd's
}

// Limits bound messages and batches; 0 is etcd's value.
type Limits struct {
	MessageBytes  uint64 // entries in one message to a follower
	Inflight      int    // messages in flight to one follower
	ApplyBytes    uint64 // committed entries that apply has not acknowledged
	ProposalBytes int    // entries in one proposal message
}

// Append is one write to the log.
type Append struct {
	HardState *raftpb.HardState // nil when unchanged
	Entries   []*raftpb.Entry
	Snapshot  *raftpb.Snapshot // replaces everything before; nil if none
	// MustSync is set if the write must be durable before Responses are sent. A commit
	// index alone need not be, unless it commits a change of the membership.
	MustSync  bool
	Responses []*raftpb.Message
}

// Apply holds committed entries, ascending and without gaps.
type Apply struct {
	Entries   []*raftpb.Entry
	Responses []*raftpb.Message
}

// Effects is what the caller has to do next.
type Effects struct {
	Send   []*raftpb.Message
	Append []Append
	Apply  []Apply
	Reads  []raft.ReadState
}

// State is a summary of the node's state.
type State struct {
	Term   ids.Term
	Lead   ids.Member
	Commit ids.Index
	// Applied is the index up to which Apply was acknowledged.
	Applied ids.Index
	Role    raft.StateType
}

// Node is a raft.RawNode with asynchronous storage writes.
type Node struct {
	id        ids.Member
	rn        *raft.RawNode
	term      ids.Term
	vote      ids.Member // as of the last Append handed out
	conf      ids.Index  // index of raft's configuration
	due       Effects
	state     State
	storage   raft.Storage
	propBytes int // bounds one proposal message
	msgBytes  int // bounds the entries of one message to a follower
	acked     acks
	only      ids.Member        // the only voter of raft's configuration; 0 if there are more, or none
	held      []*raftpb.Message // reads that wait until the only voter knows what is committed
	// As of the effects that were handed out: the last index of the log, and the newest
	// round of reads that was sent with heartbeats as the leader of readTerm.
	last  ids.Index
	moved bool // the last index may have changed since
	// changeAt is an upper bound of the indexes at which the log of the leader of
	// changeTerm holds membership changes that are not applied.
	changeAt   ids.Index
	changeTerm ids.Term
	readTerm   ids.Term
	readRound  uint64
}

// New starts a node from its storage.
func New(c Config) (*Node, error) {
	hs, cs, err := c.Storage.InitialState()
	if err != nil {
		return nil, fmt.Errorf("read initial raft state: %w", err)
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID:                       uint64(c.ID),
		ElectionTick:             c.ElectionTicks,
		HeartbeatTick:            c.HeartbeatTicks,
		Storage:                  c.Storage,
		Applied:                  uint64(c.Applied),
		AsyncStorageWrites:       true,
		MaxSizePerMsg:            cmp.Or(c.Limits.MessageBytes, maxSizePerMsg),
		MaxCommittedSizePerReady: cmp.Or(c.Limits.ApplyBytes, maxApplyBytes),
		MaxInflightMsgs:          cmp.Or(c.Limits.Inflight, maxInflightMsgs),
		MaxInflightBytes:         maxInflightBytes,
		CheckQuorum:              true,
		PreVote:                  c.PreVote,
		ReadOnlyOption:           raft.ReadOnlySafe,
		Logger:                   c.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	last, err := c.Storage.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("read last index: %w", err)
	}
	n := &Node{id: c.ID, rn: rn, term: ids.Term(hs.GetTerm()), vote: ids.Member(hs.GetVote()), conf: c.Applied, storage: c.Storage, only: onlyVoter(cs), last: ids.Index(last),
		propBytes: cmp.Or(c.Limits.ProposalBytes, maxPropBytes), msgBytes: int(cmp.Or(c.Limits.MessageBytes, maxSizePerMsg))}
	n.refresh()
	return n, nil
}

func (n *Node) refresh() {
	st := n.rn.BasicStatus()
	n.state = State{Term: ids.Term(st.HardState.GetTerm()), Commit: ids.Index(st.HardState.GetCommit()), Applied: ids.Index(st.Applied), Lead: ids.Member(st.Lead), Role: st.RaftState}
}

// ID returns the id of the member.
func (n *Node) ID() ids.Member { return n.id }

// State returns the state as of the last call that changed it.
func (n *Node) State() State { return n.state }

// Tick advances raft's time by one tick.
func (n *Node) Tick() { n.rn.Tick() }

// Campaign starts an election now.
func (n *Node) Campaign() error { return n.rn.Campaign() }

// Entry is a proposal.
type Entry struct {
	Data       []byte
	ConfChange bool
}

// Propose proposes entries in order, in as few messages as the size limit allows. It
// returns how many raft has accepted; if not all, the error is ErrDropped.
func (n *Node) Propose(ents []Entry) (taken int, err error) {
	for taken < len(ents) {
		var batch []*raftpb.Entry
		size := 0
		for _, e := range ents[taken:] {
			if size += len(e.Data); len(batch) > 0 && size > n.propBytes {
				break
			}
			pe := &raftpb.Entry{Data: e.Data}
			if e.ConfChange {
				pe.Type = raftpb.EntryConfChange.Enum()
			}
			batch = append(batch, pe)
		}
		m := &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: (*uint64)(&n.id), Entries: batch}
		if err := n.rn.Step(m); err != nil {
			return taken, err
		}
		taken += len(batch)
		n.noteChange(m)
	}
	return taken, nil
}

// ChangePending reports whether the log of this leader may hold a membership change that is
// not applied. Until it is, raft turns further changes into empty entries.
func (n *Node) ChangePending() bool {
	st := n.rn.BasicStatus()
	if term := ids.Term(st.HardState.GetTerm()); term != n.changeTerm {
		n.collect()
		n.changeTerm, n.changeAt = term, n.last // entries of former leaders may hold changes
	}
	return n.changeAt > ids.Index(st.Applied)
}

// noteChange updates changeAt for a proposal that raft has accepted.
func (n *Node) noteChange(m *raftpb.Message) {
	for _, e := range m.Entries {
		if e.GetType() == raftpb.EntryConfChange {
			n.collect()
			n.changeAt = max(n.changeAt, n.last)
			return
		}
	}
}

// Step processes a response of the local log or apply, or proposals that were returned.
// Messages of peers go to Receive instead. Invalid messages are dropped with an error.
func (n *Node) Step(m *raftpb.Message) error {
	switch m.GetType() {
	case raftpb.MsgStorageApplyResp:
		n.checkApplied(m.Entries)
	case raftpb.MsgSnap:
		err := n.rn.Step(m)
		n.collect() // updates conf if raft has accepted the snapshot's configuration
		return err
	case raftpb.MsgReadIndex:
		return n.read(m)
	}
	return n.rn.Step(m)
}

// checkApplied panics if raft was not told of a membership change among the entries that
// are acknowledged as applied: raft counts quorums and elects with it from then on.
func (n *Node) checkApplied(ents []*raftpb.Entry) {
	for _, e := range ents {
		if e.GetType() == raftpb.EntryConfChange && ids.Index(e.GetIndex()) > n.conf {
			panic(fmt.Sprintf("raftnode: entry %d is acknowledged as applied before raft was told of its membership change", e.GetIndex()))
		}
	}
}

// ReadIndex requests a read barrier. The answer comes in Effects.Reads with the same
// context, or never if there is no leader.
func (n *Node) ReadIndex(ctx []byte) {
	// The only error is that it was dropped, as without a leader.
	_ = n.read(&raftpb.Message{Type: raftpb.MsgReadIndex.Enum(), Entries: []*raftpb.Entry{{Data: ctx}}})
}

// maxHeld bounds the reads that wait. Further ones are dropped and requested again.
const maxHeld = 1024

// read passes a read barrier to raft. If there is one voter, raft answers at once: it
// assumes that the leader is that voter and that it knows the commit index. Neither need be
// true. A leader that was removed is not that voter and does not see later writes. And a
// leader that was just elected knows the commit index only once its first entry is
// committed: before that, entries that an earlier leader has acknowledged may be in its log
// without being known as committed.
func (n *Node) read(m *raftpb.Message) error {
	if n.only == 0 || !n.Leading() {
		return n.rn.Step(m)
	}
	switch {
	case n.only != n.id || len(n.held) >= maxHeld && !n.committedInTerm():
		return nil
	case !n.committedInTerm():
		n.held = append(n.held, m)
		return nil
	}
	return n.rn.Step(m)
}

// committedInTerm reports whether an entry of the current term is committed. It is used on
// the only voter, whose log on disk holds all committed entries.
func (n *Node) committedInTerm() bool {
	st := n.rn.BasicStatus()
	term, err := n.storage.Term(st.HardState.GetCommit())
	return err == nil && term == st.HardState.GetTerm()
}

// release passes on held reads that need not wait any longer, and drops them on a member
// that no longer leads.
func (n *Node) release() {
	if len(n.held) == 0 || n.Leading() && n.only == n.id && !n.committedInTerm() {
		return
	}
	held := n.held
	n.held = nil
	if !n.Leading() {
		return // the readers ask the next leader
	}
	for _, m := range held {
		_ = n.read(m) // as in ReadIndex
	}
}

func onlyVoter(cs *raftpb.ConfState) ids.Member {
	if len(cs.GetVoters()) != 1 || len(cs.GetVotersOutgoing()) > 0 {
		return 0
	}
	return ids.Member(cs.GetVoters()[0])
}

// ApplyConfChange applies the membership change of a committed entry to raft, unless raft's
// configuration already includes that entry. A change that was refused at apply is passed
// with node id 0 and has no effect.
func (n *Node) ApplyConfChange(index ids.Index, cc *raftpb.ConfChange) {
	if index <= n.conf {
		return
	}
	n.conf = index
	n.only = onlyVoter(n.rn.ApplyConfChange(cc))
	n.refresh()
}

// Transfer asks the leader to transfer leadership to another voter.
func (n *Node) Transfer(to ids.Member) { n.rn.TransferLeader(uint64(to)) }

// Successor returns the voter that should replace a leader whose own log write hangs: of
// the voters with more of the log on disk than the leader, the one with the most, and avoid
// only if there is no other. It is 0 unless those voters are a quorum without this node, as
// otherwise a transfer gains nothing.
func (n *Node) Successor(avoid ids.Member) ids.Member {
	st := n.rn.Status()
	if st.RaftState != raft.StateLeader {
		return 0
	}
	own := st.Progress[uint64(n.id)].Match
	able := map[uint64]bool{}
	var best ids.Member
	for _, voters := range st.Config.Voters {
		for _, id := range voters.Slice() { // ascending, so the choice does not vary
			pr, ok := st.Progress[id]
			able[id] = ok && ids.Member(id) != n.id && pr.RecentActive && pr.Match > own
			if able[id] && (best == 0 || best == avoid || ids.Member(id) != avoid && pr.Match > st.Progress[uint64(best)].Match) {
				best = ids.Member(id)
			}
		}
	}
	if st.Config.Voters.VoteResult(able) != quorum.VoteWon {
		return 0
	}
	return best
}

// Heir returns the voter that is best placed to lead next, 0 if there is none. On a leader
// that is the recently active voter with the most of the log. On a follower it is the node
// itself, as it does not know the state of the others.
func (n *Node) Heir() ids.Member {
	st := n.rn.Status()
	if st.RaftState != raft.StateLeader {
		if _, votes := st.Config.Voters.IDs()[uint64(n.id)]; votes {
			return n.id
		}
		return 0
	}
	var best ids.Member
	for _, voters := range st.Config.Voters {
		for _, id := range voters.Slice() {
			pr, ok := st.Progress[id]
			if ok && ids.Member(id) != n.id && pr.RecentActive && (best == 0 || pr.Match > st.Progress[uint64(best)].Match) {
				best = ids.Member(id)
			}
		}
	}
	return best
}

// Lead returns the current leader, 0 if none is known. State may be older than the last
// input.
func (n *Node) Lead() ids.Member { return ids.Member(n.rn.BasicStatus().Lead) }

// Leading reports whether the node leads now. State may be older than the last input.
func (n *Node) Leading() bool { return n.rn.BasicStatus().RaftState == raft.StateLeader }

// LeadsIn reports whether the node leads now, in the given term.
func (n *Node) LeadsIn(term ids.Term) bool {
	st := n.rn.BasicStatus()
	return st.RaftState == raft.StateLeader && ids.Term(st.HardState.GetTerm()) == term
}

// Transferring returns the voter that leadership is being transferred to, 0 if none.
func (n *Node) Transferring() uint64 { return n.rn.BasicStatus().LeadTransferee }

// ReportUnreachable reports that a message to the peer was lost.
func (n *Node) ReportUnreachable(id ids.Member) { n.rn.ReportUnreachable(uint64(id)) }

// ReportSnapshot reports whether sending a snapshot to the peer succeeded.
func (n *Node) ReportSnapshot(id ids.Member, ok bool) {
	st := raft.SnapshotFinish
	if !ok {
		st = raft.SnapshotFailure
	}
	n.rn.ReportSnapshot(uint64(id), st)
}

// Status returns a copy of raft's status. Progress is set on a leader only.
func (n *Node) Status() raft.Status { return n.rn.Status() }

// Effects returns the effects of all inputs since the last call.
func (n *Node) Effects() Effects {
	n.collect()
	e := n.due
	n.due = Effects{}
	return e
}

// collect adds raft's Readys to due.
func (n *Node) collect() {
	e := &n.due
	n.release()
	for n.rn.HasReady() {
		rd := n.rn.Ready()
		before := len(e.Append)
		for _, m := range rd.Messages {
			switch m.GetTo() {
			case raft.LocalAppendThread:
				e.Append = append(e.Append, n.appendOf(m))
			case raft.LocalApplyThread:
				e.Apply = append(e.Apply, Apply{Entries: m.Entries, Responses: m.Responses})
			default:
				n.noteRound(m)
				e.Send = join(e.Send, m, n.msgBytes)
			}
		}
		if slices.ContainsFunc(rd.CommittedEntries, changesMembers) {
			e.Append = syncCommit(e.Append, before)
		}
		e.Reads = append(e.Reads, rd.ReadStates...)
	}
	n.moved = false
	n.refresh()
}

// noteRound records the newest round of reads that a heartbeat carries.
func (n *Node) noteRound(m *raftpb.Message) {
	if m.GetType() != raftpb.MsgHeartbeat || len(m.Context) != 8 {
		return
	}
	if ids.Term(m.GetTerm()) != n.readTerm {
		n.readTerm, n.readRound = ids.Term(m.GetTerm()), 0
	}
	n.readRound = max(n.readRound, binary.LittleEndian.Uint64(m.Context))
}

func (n *Node) appendOf(m *raftpb.Message) Append {
	a := Append{Entries: m.Entries, Responses: m.Responses, MustSync: len(m.Entries) > 0}
	if m.Term != nil {
		a.HardState = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		if ids.Term(m.GetTerm()) != n.term || ids.Member(m.GetVote()) != n.vote {
			n.term, n.vote = ids.Term(m.GetTerm()), ids.Member(m.GetVote())
			a.MustSync = true
		}
	}
	if m.Snapshot != nil && !raft.IsEmptySnap(m.Snapshot) {
		a.Snapshot, a.MustSync = m.Snapshot, true
		n.conf = ids.Index(m.Snapshot.GetMetadata().GetIndex())
		n.only = onlyVoter(m.Snapshot.GetMetadata().GetConfState())
		n.last = ids.Index(m.Snapshot.GetMetadata().GetIndex())
	}
	if k := len(m.Entries); k > 0 {
		n.last = ids.Index(m.Entries[k-1].GetIndex())
	}
	n.acked.leaveOut(&a)
	return a
}

func changesMembers(e *raftpb.Entry) bool {
	return e.GetType() == raftpb.EntryConfChange || e.GetType() == raftpb.EntryConfChangeV2
}

// syncCommit makes the commit index of a Ready durable, whose writes begin at from. A member
// that is removed leaves soon after the change. One that forgets, in a loss of power, that
// the change is committed counts votes by the former membership: it could wait forever for
// the vote of the member that has left. For other entries their own sync is enough: members
// that hold them elect a leader, which commits them again.
func syncCommit(writes []Append, from int) []Append {
	for i := from; i < len(writes); i++ {
		if writes[i].HardState != nil {
			writes[i].MustSync = true
			return writes
		}
	}
	// The commit index was written before, with a sync or without.
	return append(writes, Append{MustSync: true})
}

// Lazy reports whether nothing waits for the write: it may be delayed until the next one,
// with which its commit index is written.
func (a *Append) Lazy() bool {
	return !a.MustSync && len(a.Entries) == 0 && a.Snapshot == nil && len(a.Responses) == 0
}
