// Package raftnode is consensus behind one small object: inputs go in, effects
// come out.
//
// In: ticks, messages of peers, entries to propose, read barriers, completions
// of the log and of apply. Out: effects as values: messages to send, entries to
// write, entries to apply, confirmed reads. Always true: it does no I/O, reads
// no clock and starts no goroutine; the same inputs give the same effects. It is
// used by one goroutine at a time.
//
// The order that the caller owes: the Appends are processed one after the other,
// each durable before its Responses are delivered; the Applies likewise, in
// order. Send may go out at once. A Response for this member comes back through
// Step, one for a peer goes to the transport.
//
// There is one applied index: State.Applied, up to which the caller has acknowledged
// what was applied. Until then raft may read an entry again, so the log is truncated
// no further. raft's configuration has an index as well. It is that of the newest
// membership change that raft was told of, or of a snapshot that raft has accepted,
// which may overtake entries that are still to be applied: a change among those
// is part of the snapshot and changes nothing in raft.
package raftnode

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"
)

// ErrDropped is returned by Propose when the entry was not taken and surely is
// not in any log: there is no leader, or leadership is being handed over.
var ErrDropped = raft.ErrProposalDropped

// Limits as etcd sets them; peers of both kinds see the same message sizes.
const (
	maxSizePerMsg   = 1 << 20
	maxInflightMsgs = 512
	// maxInflightBytes bounds what is under way to one follower beside the number
	// of messages: entries may be large.
	maxInflightBytes = 32 << 20
	// maxApplyBytes bounds the committed entries that are handed out and not yet
	// acknowledged by apply.
	maxApplyBytes = 8 << 20
	// maxPropBytes bounds one proposal message, which a follower forwards.
	maxPropBytes = 1 << 20
)

// Config holds what a node needs to start. ID, Storage and the ticks are
// required.
type Config struct {
	ID             uint64
	ElectionTicks  int
	HeartbeatTicks int
	PreVote        bool
	Storage        raft.Storage
	Applied        uint64 // index that the state machine already holds
	Logger         raft.Logger
}

// Append is one write to the log.
type Append struct {
	HardState *raftpb.HardState // nil when unchanged
	Entries   []*raftpb.Entry
	Snapshot  *raftpb.Snapshot // replaces everything before; nil when none
	// MustSync tells that the write must be durable before Responses go out. A
	// commit index alone need not be.
	MustSync  bool
	Responses []*raftpb.Message
}

// Apply is one run of committed entries, ascending and without gaps.
type Apply struct {
	Entries   []*raftpb.Entry
	Responses []*raftpb.Message
}

// Effects is what has to happen next.
type Effects struct {
	Send   []*raftpb.Message
	Append []Append
	Apply  []Apply
	Reads  []raft.ReadState
}

// State is what others may know about the node.
type State struct {
	Term, Lead, Commit uint64
	// Applied is the index up to which Apply was acknowledged.
	Applied uint64
	Role    raft.StateType
}

// Node is a raft.RawNode with asynchronous storage writes.
type Node struct {
	id         uint64
	rn         *raft.RawNode
	term, vote uint64 // as of the last Append handed out
	conf       uint64 // index of raft's configuration
	due        Effects
	state      State
	storage    raft.Storage
	only       uint64            // the only voter of raft's configuration; 0 if there are more, or none
	held       []*raftpb.Message // reads that wait until the only voter knows what is committed
	// As of what was handed out: the last index of the log, and the newest round of
	// reads that heartbeats have asked for as a leader of readTerm.
	last  uint64
	moved bool // the log may end elsewhere by now
	// changeAt is an index up to which the log of the leader of changeTerm may hold changes of
	// the membership that are not applied.
	changeAt, changeTerm uint64
	readTerm, readRound  uint64
}

// New starts a node from what its storage holds.
func New(c Config) (*Node, error) {
	hs, cs, err := c.Storage.InitialState()
	if err != nil {
		return nil, fmt.Errorf("read initial raft state: %w", err)
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID:                       c.ID,
		ElectionTick:             c.ElectionTicks,
		HeartbeatTick:            c.HeartbeatTicks,
		Storage:                  c.Storage,
		Applied:                  c.Applied,
		AsyncStorageWrites:       true,
		MaxSizePerMsg:            maxSizePerMsg,
		MaxCommittedSizePerReady: maxApplyBytes,
		MaxInflightMsgs:          maxInflightMsgs,
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
	n := &Node{id: c.ID, rn: rn, term: hs.GetTerm(), vote: hs.GetVote(), conf: c.Applied, storage: c.Storage, only: onlyVoter(cs), last: last}
	n.refresh()
	return n, nil
}

func (n *Node) refresh() {
	st := n.rn.BasicStatus()
	n.state = State{Term: st.HardState.GetTerm(), Commit: st.HardState.GetCommit(), Applied: st.Applied, Lead: st.Lead, Role: st.RaftState}
}

// ID returns the member that the node is of.
func (n *Node) ID() uint64 { return n.id }

// State returns the state as of the last call that changed it.
func (n *Node) State() State { return n.state }

// Tick lets one heartbeat interval pass.
func (n *Node) Tick() { n.rn.Tick() }

// Campaign starts an election now.
func (n *Node) Campaign() error { return n.rn.Campaign() }

// Entry is a proposal.
type Entry struct {
	Data       []byte
	ConfChange bool
}

// Propose offers entries in order, in as few messages as the size limit allows.
// It returns how many were taken; fewer than all comes with ErrDropped.
func (n *Node) Propose(ents []Entry) (taken int, err error) {
	for taken < len(ents) {
		var batch []*raftpb.Entry
		size := 0
		for _, e := range ents[taken:] {
			if size += len(e.Data); len(batch) > 0 && size > maxPropBytes {
				break
			}
			pe := &raftpb.Entry{Data: e.Data}
			if e.ConfChange {
				pe.Type = raftpb.EntryConfChange.Enum()
			}
			batch = append(batch, pe)
		}
		m := &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: &n.id, Entries: batch}
		if err := n.rn.Step(m); err != nil {
			return taken, err
		}
		taken += len(batch)
		n.noteChange(m)
	}
	return taken, nil
}

// ChangePending reports whether the log of this leader may hold a change of the
// membership that is not applied. Raft makes empty entries of further ones until it is.
func (n *Node) ChangePending() bool {
	st := n.rn.BasicStatus()
	if term := st.HardState.GetTerm(); term != n.changeTerm {
		n.collect()
		n.changeTerm, n.changeAt = term, n.last // what former leaders have left
	}
	return n.changeAt > st.Applied
}

// noteChange takes note of a proposal that raft has taken.
func (n *Node) noteChange(m *raftpb.Message) {
	for _, e := range m.Entries {
		if e.GetType() == raftpb.EntryConfChange {
			n.collect()
			n.changeAt = max(n.changeAt, n.last)
			return
		}
	}
}

// Step takes a response of the local log or apply, or proposals that were given back;
// what comes from peers takes Receive. Messages that make no sense here are dropped
// with an error.
func (n *Node) Step(m *raftpb.Message) error {
	switch m.GetType() {
	case raftpb.MsgStorageApplyResp:
		n.checkApplied(m.Entries)
	case raftpb.MsgSnap:
		err := n.rn.Step(m)
		n.collect() // the index of the configuration that raft may have taken over
		return err
	case raftpb.MsgReadIndex:
		return n.read(m)
	}
	return n.rn.Step(m)
}

// checkApplied makes sure that raft has heard of every membership change up to what is
// acknowledged as applied: it counts and elects with them from then on.
func (n *Node) checkApplied(ents []*raftpb.Entry) {
	for _, e := range ents {
		if e.GetType() == raftpb.EntryConfChange && e.GetIndex() > n.conf {
			panic(fmt.Sprintf("raftnode: entry %d is acknowledged as applied before raft was told of its membership change", e.GetIndex()))
		}
	}
}

// ReadIndex asks for a read barrier; the answer comes in Effects.Reads under the
// same context, or never (no leader).
func (n *Node) ReadIndex(ctx []byte) {
	// It can only be dropped, which is the case of no leader.
	_ = n.read(&raftpb.Message{Type: raftpb.MsgReadIndex.Enum(), Entries: []*raftpb.Entry{{Data: ctx}}})
}

// maxHeld bounds the reads that wait; those beyond are dropped and asked for again.
const maxHeld = 1024

// read passes a read barrier on. raft answers at once when there is one voter, which
// it takes for the leader itself and for one that knows all that is committed. A
// leader that was removed is not that voter, and no longer knows what is written.
// And one that has just been elected knows what is committed only when its first
// entry is: before, what an earlier leader has acknowledged may be in its log alone.
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

// committedInTerm reports whether an entry of the present term is committed, at the
// only voter, whose log on disk holds all that is.
func (n *Node) committedInTerm() bool {
	st := n.rn.BasicStatus()
	term, err := n.storage.Term(st.HardState.GetCommit())
	return err == nil && term == st.HardState.GetTerm()
}

// release passes on the reads that no longer have to wait, or never will be answered.
func (n *Node) release() {
	if len(n.held) == 0 || n.Leading() && n.only == n.id && !n.committedInTerm() {
		return
	}
	held := n.held
	n.held = nil
	if !n.Leading() {
		return // those who wait ask the next leader
	}
	for _, m := range held {
		_ = n.read(m) // as in ReadIndex
	}
}

func onlyVoter(cs *raftpb.ConfState) uint64 {
	if len(cs.GetVoters()) != 1 || len(cs.GetVotersOutgoing()) > 0 {
		return 0
	}
	return cs.GetVoters()[0]
}

// ApplyConfChange puts the membership change of a committed entry into effect,
// unless raft's configuration is of that entry or a later one. A refused change is
// passed with node id 0 and changes nothing.
func (n *Node) ApplyConfChange(index uint64, cc *raftpb.ConfChange) {
	if index <= n.conf {
		return
	}
	n.conf = index
	n.only = onlyVoter(n.rn.ApplyConfChange(cc))
	n.refresh()
}

// Transfer asks the leader to hand leadership to another voter.
func (n *Node) Transfer(to uint64) { n.rn.TransferLeader(to) }

// Successor returns the voter that is to take over from a leader whose own log
// write hangs: of those that have more of the log on disk than the leader, the
// one with the most, and rather another one than avoid. It is 0 unless those
// voters can elect and commit without this node, as only then anything is won.
func (n *Node) Successor(avoid uint64) uint64 {
	st := n.rn.Status()
	if st.RaftState != raft.StateLeader {
		return 0
	}
	own := st.Progress[n.id].Match
	able := map[uint64]bool{}
	var best uint64
	for _, voters := range st.Config.Voters {
		for _, id := range voters.Slice() { // ascending, so the choice does not vary
			pr, ok := st.Progress[id]
			able[id] = ok && id != n.id && pr.RecentActive && pr.Match > own
			if able[id] && (best == 0 || best == avoid || id != avoid && pr.Match > st.Progress[best].Match) {
				best = id
			}
		}
	}
	if st.Config.Voters.VoteResult(able) != quorum.VoteWon {
		return 0
	}
	return best
}

// Heir returns the voter that is best placed to lead next, 0 if there is none: of
// those that a leader has heard of lately, the one with the most of the log; for a
// follower, the node itself, as it knows of nobody else.
func (n *Node) Heir() uint64 {
	st := n.rn.Status()
	if st.RaftState != raft.StateLeader {
		if _, votes := st.Config.Voters.IDs()[n.id]; votes {
			return n.id
		}
		return 0
	}
	var best uint64
	for _, voters := range st.Config.Voters {
		for _, id := range voters.Slice() {
			pr, ok := st.Progress[id]
			if ok && id != n.id && pr.RecentActive && (best == 0 || pr.Match > st.Progress[best].Match) {
				best = id
			}
		}
	}
	return best
}

// Lead returns the leader, 0 if none is known; State may be of before the last input.
func (n *Node) Lead() uint64 { return n.rn.BasicStatus().Lead }

// Leading reports whether the node leads; State may be of before the last input.
func (n *Node) Leading() bool { return n.rn.BasicStatus().RaftState == raft.StateLeader }

// Transferring returns the voter that leadership is being handed to, 0 if none.
func (n *Node) Transferring() uint64 { return n.rn.BasicStatus().LeadTransferee }

// ReportUnreachable tells that a message to the peer was lost.
func (n *Node) ReportUnreachable(id uint64) { n.rn.ReportUnreachable(id) }

// ReportSnapshot tells how a snapshot that was sent has ended.
func (n *Node) ReportSnapshot(id uint64, ok bool) {
	st := raft.SnapshotFinish
	if !ok {
		st = raft.SnapshotFailure
	}
	n.rn.ReportSnapshot(id, st)
}

// Status returns a copy of raft's state. Only a leader knows the progress of the
// others.
func (n *Node) Status() raft.Status { return n.rn.Status() }

// Effects collects everything that has become due since the last call.
func (n *Node) Effects() Effects {
	n.collect()
	e := n.due
	n.due = Effects{}
	return e
}

// collect adds to due what raft has ready.
func (n *Node) collect() {
	e := &n.due
	n.release()
	for n.rn.HasReady() {
		rd := n.rn.Ready()
		for _, m := range rd.Messages {
			switch m.GetTo() {
			case raft.LocalAppendThread:
				e.Append = append(e.Append, n.appendOf(m))
			case raft.LocalApplyThread:
				e.Apply = append(e.Apply, Apply{Entries: m.Entries, Responses: m.Responses})
			default:
				n.noteRound(m)
				e.Send = append(e.Send, m)
			}
		}
		e.Reads = append(e.Reads, rd.ReadStates...)
	}
	n.moved = false
	n.refresh()
}

// noteRound remembers the newest round of reads.
func (n *Node) noteRound(m *raftpb.Message) {
	if m.GetType() != raftpb.MsgHeartbeat || len(m.Context) != 8 {
		return
	}
	if m.GetTerm() != n.readTerm {
		n.readTerm, n.readRound = m.GetTerm(), 0
	}
	n.readRound = max(n.readRound, binary.LittleEndian.Uint64(m.Context))
}

func (n *Node) appendOf(m *raftpb.Message) Append {
	a := Append{Entries: m.Entries, Responses: m.Responses, MustSync: len(m.Entries) > 0}
	if m.Term != nil {
		a.HardState = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		if m.GetTerm() != n.term || m.GetVote() != n.vote {
			n.term, n.vote = m.GetTerm(), m.GetVote()
			a.MustSync = true
		}
	}
	if m.Snapshot != nil && !raft.IsEmptySnap(m.Snapshot) {
		a.Snapshot, a.MustSync = m.Snapshot, true
		n.conf = m.Snapshot.GetMetadata().GetIndex()
		n.only = onlyVoter(m.Snapshot.GetMetadata().GetConfState())
		n.last = m.Snapshot.GetMetadata().GetIndex()
	}
	if k := len(m.Entries); k > 0 {
		n.last = m.Entries[k-1].GetIndex()
	}
	return a
}
