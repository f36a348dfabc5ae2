package replica

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/watch"
)

// Pipeline orders everything between raft and the answers to clients: a step of the core,
// the log writes that follow from it, the entries that are applied, and the delivery of
// their results. A driver runs its three parts, each with one call at a time: Step, the
// jobs of Log, and the work of Apply.
type Pipeline struct {
	Log     *Writer
	Apply   *Applier
	Settler *Settler

	env  *Env
	core *Core
}

// Parts holds the components and limits of a pipeline.
type Parts struct {
	Core      *Core
	Self      ids.Member // id of the member
	Proposals *proposal.Table
	Reads     *readindex.Batcher
	Hub       *watch.Hub
	Lessor    *lease.Lessor
	// Extend is how long a new leader postpones the expiry of all leases.
	Extend time.Duration
	Mark   ids.Index // the log holds the entries after this index
	// TruncateEvery is the number of applied entries between two truncations of the log,
	// Keep the number of entries that are retained for slow followers.
	TruncateEvery, Keep uint64
	// MaxRunBytes is about how many bytes are applied before acknowledgements are sent.
	MaxRunBytes int
}

// Env is the interface between a pipeline and its driver. All functions are required. None
// may wait for another part of the pipeline.
type Env struct {
	// Core adds input for the core and makes sure that a step follows.
	Core func(func(*Input))
	// Send sends messages to peers. It may modify them.
	Send func([]*raftpb.Message)
	// Follow publishes what a step has changed. It is called within Step.
	Follow func(Input, Effects)
	// TruncationDue asks for a truncation soon: see Writer.Truncate.
	TruncationDue func()

	// WriteTo is the log that appends go to.
	WriteTo Log
	// Home returns the data directory of the member.
	Home func() Home
	// Exchange switches to the store that was imported for a snapshot.
	Exchange func(*raftpb.SnapshotMetadata) error
	// Exchanged is called with the result of Exchange, within Applier.Do.
	Exchanged func(error)

	// Apply applies entries to the store in use, in one batch of its engine.
	Apply func([]apply.Entry) (apply.Outcome, error)
	// Applied is called with the outcome, before anyone else learns of it.
	Applied func([]apply.Entry, apply.Outcome, time.Duration)
	// Now returns the current time.
	Now func() time.Time

	// AuthChanged is called when a batch has changed users, roles or permissions.
	AuthChanged func()
	// MemberChanged is called for each change of the membership.
	MemberChanged func(membership.Effect)
	// TermBegun is called on a leader that has applied the first entry of its term.
	TermBegun func()
	// NoSpace is called when the quota is exceeded.
	NoSpace func()
	// Reconfigured is called once raft uses the membership changes of a batch.
	Reconfigured func()
}

// Home does the file work of a pipeline in the data directory. When a call returns nil its
// effect is durable; a call that failed because the disk is full may be repeated.
type Home interface {
	Importer
	// Truncate drops the log up to index, at which the configuration was cs.
	Truncate(index ids.Index, cs *raftpb.ConfState) error
}

// NewPipeline returns a pipeline with nothing to do.
func NewPipeline(p Parts, env *Env) *Pipeline {
	pipe := &Pipeline{env: env, core: p.Core}
	pipe.Settler = &Settler{env: env, self: p.Self, props: p.Proposals, reads: p.Reads, hub: p.Hub, lessor: p.Lessor, extend: p.Extend}
	pipe.Settler.follow(p.Core.node.State())
	pipe.Apply = &Applier{env: env, settler: pipe.Settler, maxRunBytes: p.MaxRunBytes, waiting: newQueue[Work](),
		local: func(e *raftpb.Entry) *proposal.Pending { return PendingOf(p.Proposals, e) }}
	pipe.Log = &Writer{env: env, self: p.Self, applier: pipe.Apply, waiting: newQueue[raftnode.Append](),
		every: p.TruncateEvery, keep: p.Keep, wanted: p.Core.node.State().Applied}
	pipe.Log.mark.Store(uint64(p.Mark))
	return pipe
}

// Core returns the core. The driver may read the leader's state from it between steps.
func (p *Pipeline) Core() *Core { return p.core }

// Step runs the core once and passes on its effects, in order. After an error none of them
// was passed on, and the member has to stop: no further step may follow.
func (p *Pipeline) Step(now time.Time, in Input) *raftnode.LostLogError {
	eff := p.core.Step(now, in)
	if eff.LostLog != nil {
		return eff.LostLog // no further vote or acknowledgement may leave
	}
	if len(eff.Send) > 0 {
		p.env.Send(eff.Send)
	}
	// The new state is published before anything that waits for the log can be sent: a
	// reader of the term must not find the old one while a vote in the new one is in flight.
	p.Settler.follow(eff.State)
	p.env.Follow(in, eff)
	p.Log.push(eff.Append)
	p.Apply.push(eff.Apply)
	if p.Log.truncationDue(eff.State.Applied) {
		p.env.TruncationDue()
	}
	for _, f := range in.Then {
		f()
	}
	return nil
}
