package replica

import (
	"encoding/binary"
	"errors"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
)

// Input is everything that has happened to a member since its last step.
type Input struct {
	Ticks int
	// LogStall, which comes with ticks, is how long the log write has been under
	// way that the disk does not finish; 0 without one.
	LogStall    time.Duration
	Recv        []*raftpb.Message // from peers; raftnode.Check has passed them
	Acks        []*raftpb.Message // responses of the local log and apply
	ConfChanges []apply.ConfChange
	Propose     []*proposal.Pending
	ReadWanted  bool
	Unreachable []uint64
	Returned    []*raftpb.Message // proposals that the network has surely not sent
	Snapshots   []SnapshotReport
	TransferTo  uint64 // 0 = none
	Campaign    bool
	// Then are run by the driver after the step.
	Then []func()
	// AskStatus are answered with the state of raft after the step. Each has
	// room for the answer.
	AskStatus []chan<- raft.Status
}

// SnapshotReport tells how sending a snapshot to a peer has ended.
type SnapshotReport struct {
	To uint64
	OK bool
}

// Effects is what a driver has to do after a step, in the terms of raftnode.
type Effects struct {
	raftnode.Effects
	// LeaderChanged is set when a leader became known that was not known before;
	// State tells who leads.
	LeaderChanged bool
	State         raftnode.State
	Stall         Stall
	SlowReads     SlowReads
	// LostLog is set when the member must not go on: others count on what its log does
	// not hold any more. The other effects are not to be carried out then.
	LostLog *raftnode.LostLogError
}

// SlowReads says what happened to read barriers that nobody confirms.
type SlowReads struct {
	Again    uint64 // the id under which one was asked for again, 0 if none was
	TimedOut bool
}

// Core is one member without its disk, network, clock and threads. The real
// driver (driver.go of package server) and the simulator feed it the same inputs and carry out the
// same effects. One goroutine at a time drives it.
type Core struct {
	node  *raftnode.Node
	props *proposal.Table
	reads *readindex.Batcher
	held  proposal.Held // while there was no leader to give them to
	// forwarded are proposals of followers that came when nobody could take them,
	// above all while leadership is being handed over, and proposals of any member
	// that could not be sent to the leader. Their senders do not hear of it, and
	// waiting for an answer that cannot come is all they could do.
	forwarded      []forwarded
	forwardedBytes int
	lead           uint64
	// readRetry is how long a read barrier may go unanswered before it is asked
	// for again; readLimit ends it.
	readRetry, readLimit time.Duration
	errRead, errChanged  error
	stall                stallPolicy
	departure            departure
	gate                 gate
	lostLog              *raftnode.LostLogError
	readsWait            bool // readers have joined who wait for a round to be started
}

// CoreConfig holds the parts of a core.
type CoreConfig struct {
	Node       *raftnode.Node
	Proposals  *proposal.Table
	Reads      *readindex.Batcher
	ReadRetry  time.Duration
	ReadLimit  time.Duration
	ErrTimeout error // what a reader gets after ReadLimit
	ErrLost    error // what a writer gets whose request a former leader has taken with it
	ErrChanged error // what readers get when the leader changes under them
	// A log write that takes longer than StallAfter makes a leader hand over; 0:
	// never. StallLimit is how long requests then wait on a member whose log write
	// hangs while the others go on; they end with ErrTimeout.
	StallAfter, StallLimit time.Duration
	// Gate is asked by a leader whether a change of the membership may be proposed now;
	// nil lets all pass.
	Gate func(cc *raftpb.ConfChange, inSync func(id uint64) bool) error
	// HandOver is how long the removal of a leader waits for it to hand over first,
	// and how long after a change of leaders the requests that were under way to the
	// former one may still have an outcome.
	HandOver time.Duration
}

// NewCore returns a member at rest.
func NewCore(c CoreConfig) *Core {
	return &Core{node: c.Node, props: c.Proposals, reads: c.Reads, lead: c.Node.State().Lead,
		readRetry: c.ReadRetry, readLimit: c.ReadLimit, errRead: c.ErrTimeout, errChanged: c.ErrChanged,
		stall: stallPolicy{after: c.StallAfter, limit: c.StallLimit}, departure: departure{patience: c.HandOver, errLost: c.ErrLost}, gate: c.Gate}
}

// Node gives the driver access to what only a leader knows, between steps.
func (c *Core) Node() *raftnode.Node { return c.node }

// Step takes one batch of inputs and returns what follows from it.
func (c *Core) Step(now time.Time, in Input) Effects {
	// Membership first: the acknowledgement that follows lets raft elect and
	// count with it.
	for _, cc := range in.ConfChanges {
		c.node.ApplyConfChange(cc.Index, cc.ConfChange)
	}
	for _, m := range in.Acks {
		c.node.Step(m) // a response of a term that has passed is refused, rightly
	}
	c.retryForwarded(now, in.Ticks > 0)
	for _, m := range in.Recv {
		c.receive(now, m)
	}
	for _, m := range in.Returned {
		c.keep(now, m, true)
	}
	for _, id := range in.Unreachable {
		c.node.ReportUnreachable(id)
	}
	for _, s := range in.Snapshots {
		c.node.ReportSnapshot(s.To, s.OK)
	}
	stall := c.tick(now, in)
	c.departure.tick(in.Ticks)
	c.failLost(now)
	if in.Campaign {
		c.node.Campaign()
	}
	if in.TransferTo != 0 {
		c.node.Transfer(in.TransferTo)
	}
	c.propose(now, in.Propose)
	e := Effects{Effects: c.node.Effects(), State: c.node.State(), Stall: stall, LostLog: c.lostLog}
	for _, ask := range in.AskStatus {
		ask <- c.node.Status()
	}
	c.followLeader(now, &e)
	c.askReads(now, in, &e)
	return e
}

// forwarded is a proposal that is to be handed to raft again.
type forwarded struct {
	msg   *raftpb.Message
	bytes int
	until time.Time // when its client has given up
	// paced ones wait for the next tick: the way to the leader that was closed a
	// moment ago will not be open at once.
	paced bool
}

// Bounds of what waits; beyond them a forwarded proposal is dropped.
const (
	maxForwarded      = 4096
	maxForwardedBytes = 16 << 20
)

// receive hands a message to raft. One that makes no sense here is dropped.
func (c *Core) receive(now time.Time, m *raftpb.Message) {
	for _, x := range c.offer(now, m) {
		c.keep(now, x, false)
	}
}

// take hands a message to raft and returns an error if that is a proposal which may be
// taken later.
func (c *Core) take(m *raftpb.Message) error {
	err := c.node.Receive(m)
	if m.GetType() == raftpb.MsgProp && errors.Is(err, raftnode.ErrDropped) {
		return err
	}
	errors.As(err, &c.lostLog)
	return nil
}

func (c *Core) keep(now time.Time, m *raftpb.Message, paced bool) {
	c.keepUntil(now.Add(c.readLimit), m, paced)
}

func (c *Core) keepUntil(until time.Time, m *raftpb.Message, paced bool) {
	n := 0
	for _, e := range m.Entries {
		n += len(e.Data)
	}
	if len(c.forwarded) < maxForwarded && c.forwardedBytes+n <= maxForwardedBytes && !c.waitsAlready(m) {
		c.forwarded = append(c.forwarded, forwarded{m, n, until, paced})
		c.forwardedBytes += n
	}
}

// retryForwarded offers raft again what it could not take or send, in order;
// there is a step with every tick. A member that follows sends it on to the
// leader.
func (c *Core) retryForwarded(now time.Time, tick bool) {
	if len(c.forwarded) == 0 || c.node.State().Lead == raft.None {
		return
	}
	again := c.forwarded
	c.forwarded, c.forwardedBytes = nil, 0
	for _, f := range again {
		if !now.Before(f.until) {
			continue
		}
		if f.paced && !tick {
			c.keepUntil(f.until, f.msg, true)
			continue
		}
		// It is ours to send now.
		again := &raftpb.Message{Type: raftpb.MsgProp.Enum(), Entries: f.msg.Entries}
		if f.paced {
			again.Entries = c.awaited(f.msg.Entries)
		}
		if len(again.Entries) == 0 {
			continue
		}
		for _, x := range c.offer(now, again) {
			c.keepUntil(f.until, x, f.paced)
		}
	}
}

// awaited returns those of the entries whose proposers here still wait. A write
// must not come to life after its client was told that its time is up, however
// often it had to go back.
func (c *Core) awaited(ents []*raftpb.Entry) []*raftpb.Entry {
	var out []*raftpb.Entry
	for _, e := range ents {
		if PendingOf(c.props, e) != nil {
			out = append(out, e)
		}
	}
	return out
}

// PendingOf returns the local request that an entry carries, if any: the number finds
// it, the bytes decide. What members apply must be what is in the log, and an entry
// that happens to have the number of a request of ours is none.
func PendingOf(props *proposal.Table, e *raftpb.Entry) *proposal.Pending {
	if len(e.Data) == 0 {
		return nil
	}
	var id uint64
	ok, change := false, e.GetType() == raftpb.EntryConfChange
	if change {
		id, ok = command.ConfChangeID(e.Data)
	} else {
		id, ok = command.PeekID(e.Data)
	}
	if !ok {
		return nil
	}
	if p := props.Lookup(id); p != nil && p.ConfChange == change && p.Carries(e.Data) {
		return p
	}
	return nil
}

// propose hands what is held and what is new to raft, in order of arrival; only changes
// of the membership may have to wait.
func (c *Core) propose(now time.Time, fresh []*proposal.Pending) {
	if len(fresh) == 0 && (c.held.Empty() || c.node.State().Lead == raft.None) {
		return
	}
	all := c.sift(now, c.held.With(fresh, c.props))
	ents := make([]raftnode.Entry, len(all))
	for i, p := range all {
		ents[i] = raftnode.Entry{Data: p.Data, ConfChange: p.ConfChange}
	}
	taken, _ := c.node.Propose(ents)
	for _, p := range all[:taken] {
		p.Handed(now)
	}
	c.held.Keep(all, taken)
}

func (c *Core) followLeader(now time.Time, e *Effects) {
	lead := e.State.Lead
	if lead == c.lead {
		return
	}
	c.lead = lead
	c.departure.ledBy(now, lead)
	if lead == raft.None {
		return
	}
	e.LeaderChanged = true
	c.reads.FailInFlight(c.errChanged)
	if !c.held.Empty() || len(c.forwarded) > 0 {
		c.retryForwarded(now, false)
		c.propose(now, nil)
		c.more(e)
	}
}

func (c *Core) askReads(now time.Time, in Input, e *Effects) {
	start := in.ReadWanted || e.LeaderChanged || c.readsWait
	c.readsWait = false
	for {
		for _, r := range e.Reads {
			if c.reads.Confirm(r.RequestCtx, r.Index) {
				start = true
			}
		}
		e.Reads = nil
		var ctx []byte
		if start {
			ctx = c.reads.Start(now)
		}
		if ctx == nil && in.Ticks > 0 {
			var timedOut bool
			ctx, timedOut = c.reads.Retry(now, c.readRetry, c.readLimit, c.errRead)
			if ctx != nil {
				e.SlowReads.Again = binary.BigEndian.Uint64(ctx)
			}
			if timedOut {
				e.SlowReads.TimedOut = true
				metrics.ServerSlowReadIndexesTotal.Inc()
				start, in.Ticks = true, 0
				continue
			}
			in.Ticks = 0
		}
		if ctx == nil {
			return
		}
		start = false
		c.node.ReadIndex(ctx)
		c.more(e)
	}
}

// more adds the effects of something that happened after the first collection.
func (c *Core) more(e *Effects) {
	x := c.node.Effects()
	e.Send = append(e.Send, x.Send...)
	e.Append = append(e.Append, x.Append...)
	e.Apply = append(e.Apply, x.Apply...)
	e.Reads = append(e.Reads, x.Reads...)
	e.State = c.node.State()
}
