package replica

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/ids"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
)

// Input is everything that has happened to a member since its last step.
type Input struct {
	Ticks int
	// LogStall, set together with Ticks, is how long the current log write has been
	// running; 0 if there is none.
	LogStall    time.Duration
	Recv        []*raftpb.Message // from peers, accepted by raftnode.Check
	Acks        []*raftpb.Message // responses of the local log and apply
	ConfChanges []apply.ConfChange
	Propose     []*proposal.Pending
	ReadWanted  bool
	Unreachable []ids.Member
	Returned    []*raftpb.Message // proposals that were certainly not sent
	Snapshots   []SnapshotReport
	TransferTo  ids.Member // 0 = none
	Campaign    bool
	// Then are called after the step.
	Then []func()
	// AskStatus get raft's status after the step. Each must be buffered.
	AskStatus []chan<- raft.Status
}

// SnapshotReport reports whether a snapshot was sent to a peer.
type SnapshotReport struct {
	To ids.Member
	OK bool
}

// Effects is what the driver has to do after a step.
type Effects struct {
	raftnode.Effects
	// LeaderChanged is set when a new leader became known; State.Lead is its id.
	LeaderChanged bool
	State         raftnode.State
	Stall         Stall
	SlowReads     SlowReads
	// LostLog is set when the member has to stop: others rely on entries that its log no
	// longer holds. The other effects must not be carried out then.
	LostLog *raftnode.LostLogError
}

// SlowReads reports what happened to read barriers that are not confirmed.
type SlowReads struct {
	Again    uint64 // the id under which one was requested again, 0 if none was
	TimedOut bool
}

// Core is one member without its disk, network, clock and goroutines. The production driver
// (driver.go of package server) and the simulator feed it the same inputs and carry out the
// same effects. It is not safe for concurrent use.
type Core struct {
	node  *raftnode.Node
	props *proposal.Table
	reads *readindex.Batcher
	held  proposal.Held // proposals that arrived while there was no leader
	// forwarded are proposals of followers that raft could not take, mostly because
	// leadership is being transferred, and proposals of any member that could not be sent
	// to the leader. Their senders are not told, so without a retry their clients would
	// wait until the request times out.
	forwarded      []forwarded
	forwardedBytes int
	lead           ids.Member
	// readRetry is how long a read barrier may go unanswered before it is requested
	// again; after readLimit it fails.
	readRetry, readLimit time.Duration
	errRead, errChanged  error
	stall                stallPolicy
	departure            departure
	gate                 gate
	lostLog              *raftnode.LostLogError
	readsWait            bool // readers are waiting for a round to start
}

// CoreConfig holds the parts of a core.
type CoreConfig struct {
	Node       *raftnode.Node
	Proposals  *proposal.Table
	Reads      *readindex.Batcher
	ReadRetry  time.Duration
	ReadLimit  time.Duration
	ErrTimeout error // returned to readers after ReadLimit
	ErrLost    error // returned to writers whose request was lost with a former leader
	ErrChanged error // returned to readers when the leader changes before their round is confirmed
	// A leader whose log write takes longer than StallAfter transfers leadership; 0
	// disables that. StallLimit is how long requests then wait on a member whose log write
	// hangs while the others make progress; they fail with ErrTimeout.
	StallAfter, StallLimit time.Duration
	// Gate decides on the leader whether a membership change may be proposed now; nil
	// allows all.
	Gate func(cc *raftpb.ConfChange, inSync func(id ids.Member) bool) error
	// HandOver is how long the removal of a leader waits for it to transfer leadership,
	// and how long after a change of leader the requests that were in flight to the former
	// one may still get a result.
	HandOver time.Duration
}

// NewCore returns a core that has taken no step.
func NewCore(c CoreConfig) *Core {
	return &Core{node: c.Node, props: c.Proposals, reads: c.Reads, lead: c.Node.State().Lead,
		readRetry: c.ReadRetry, readLimit: c.ReadLimit, errRead: c.ErrTimeout, errChanged: c.ErrChanged,
		stall: stallPolicy{after: c.StallAfter, limit: c.StallLimit}, departure: departure{patience: c.HandOver, errLost: c.ErrLost}, gate: c.Gate}
}

// Node returns the raft node. The driver may read the leader's state from it between steps.
func (c *Core) Node() *raftnode.Node { return c.node }

// Step processes one batch of inputs and returns the effects.
func (c *Core) Step(now time.Time, in Input) Effects {
	// Membership first: after the acknowledgement raft counts quorums and elects with it.
	for _, cc := range in.ConfChanges {
		c.node.ApplyConfChange(cc.Index, cc.ConfChange)
	}
	for _, m := range in.Acks {
		c.node.Step(m) // raft rejects responses of an earlier term, as it should
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
	until time.Time // its client has given up by then
	// paced ones wait for the next tick: the connection to the leader that failed a
	// moment ago will not be back at once.
	paced bool
}

// Bounds of the forwarded proposals that wait; beyond them a proposal is dropped.
const (
	maxForwarded      = 4096
	maxForwardedBytes = 16 << 20
)

// receive hands a message to raft. Invalid ones are dropped.
func (c *Core) receive(now time.Time, m *raftpb.Message) {
	for _, x := range c.offer(now, m) {
		c.keep(now, x, false)
	}
}

// take hands a message to raft. It returns an error only for a proposal that raft may accept
// later.
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

// retryForwarded offers raft again what it could not accept or send, in order. It is called
// at every tick, if not earlier. On a follower raft forwards the proposals to the leader.
func (c *Core) retryForwarded(now time.Time, tick bool) {
	if len(c.forwarded) == 0 || c.node.State().Lead == ids.NoMember {
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
		// The message gets this member as its sender.
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

// awaited returns the entries whose callers on this member still wait. A write must not be
// proposed after its client was told that it timed out, however often it was returned.
func (c *Core) awaited(ents []*raftpb.Entry) []*raftpb.Entry {
	var out []*raftpb.Entry
	for _, e := range ents {
		if PendingOf(c.props, e) != nil {
			out = append(out, e)
		}
	}
	return out
}

// PendingOf returns the local request that an entry carries, nil if there is none. It looks
// the request up by its id and then compares the bytes: what is applied must be what is in
// the log, and another member's entry may happen to have the id of a local request.
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

// propose hands held and new proposals to raft in order of arrival. Only membership changes
// may have to wait.
func (c *Core) propose(now time.Time, fresh []*proposal.Pending) {
	if len(fresh) == 0 && (c.held.Empty() || c.node.State().Lead == ids.NoMember) {
		return
	}
	all := c.sift(now, c.ofTerm(c.held.With(fresh, c.props)))
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

// ofTerm fails the proposals of a leader that does not lead any more, and returns all
// others. What it has decided, that a lease has expired for example, may not be true at the
// next leader, to which raft would forward it. What raft has taken as the leader comes
// before the first entry of the next term, or nowhere.
func (c *Core) ofTerm(all []*proposal.Pending) []*proposal.Pending {
	past := func(p *proposal.Pending) bool { return p.Term != 0 && !c.node.LeadsIn(p.Term) }
	if !slices.ContainsFunc(all, past) {
		return all
	}
	out := make([]*proposal.Pending, 0, len(all))
	for _, p := range all {
		if past(p) {
			c.props.Fail(p.ID, proposal.ErrNotLeading)
		} else {
			out = append(out, p)
		}
	}
	return out
}

func (c *Core) followLeader(now time.Time, e *Effects) {
	lead := e.State.Lead
	if lead == c.lead {
		return
	}
	c.lead = lead
	c.departure.ledBy(now, lead)
	if lead == ids.NoMember {
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
			if c.reads.Confirm(r.RequestCtx, ids.Index(r.Index)) {
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

// more adds the effects of what was done after Effects was first called in this step.
func (c *Core) more(e *Effects) {
	x := c.node.Effects()
	e.Send = append(e.Send, x.Send...)
	e.Append = append(e.Append, x.Append...)
	e.Apply = append(e.Apply, x.Apply...)
	e.Reads = append(e.Reads, x.Reads...)
	e.State = c.node.State()
}
