package replica

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/watch"
)

// Pipeline is the way from what raft says to what clients are told: a step of the core,
// the work on the log that follows from it, the entries that are applied, and who hears
// of them, each in its order. A driver runs its three parts, each one call at a time:
// Step, the jobs of Log, and the work of Apply.
type Pipeline struct {
	Log     *Writer
	Apply   *Applier
	Settler *Settler

	door *Door
	core *Core
}

// Parts is what a pipeline works on.
type Parts struct {
	Core      *Core
	Self      uint64 // the member
	Proposals *proposal.Table
	Reads     *readindex.Batcher
	Hub       *watch.Hub
	Lessor    *lease.Lessor
	// Extend is by how much a new leader puts off the end of all leases.
	Extend time.Duration
	Mark   uint64 // index behind which the log begins
	// TruncateEvery is the number of entries between two truncations of the log, Keep
	// how many are left to slow followers.
	TruncateEvery, Keep uint64
	// MaxRunBytes bounds about how much is applied before acknowledgements go out.
	MaxRunBytes int
}

// Door is the world outside of a pipeline. All functions but those marked otherwise are
// needed. None may wait for another part of the pipeline.
type Door struct {
	// Core hands something to the core, and sees to it that a step follows.
	Core func(func(*Input))
	// Send puts messages on the network, and may change them.
	Send func([]*raftpb.Message)
	// Follow makes known what a step has changed. It runs within Step.
	Follow func(Input, Effects)
	// TruncationDue asks for a truncation soon: see Writer.Truncate.
	TruncationDue func()

	// WriteTo is where writes go.
	WriteTo Log
	// Home returns the files of the member.
	Home func() Home
	// Exchange puts the store that was imported for a snapshot into use.
	Exchange func(*raftpb.SnapshotMetadata) error
	// Exchanged hears how that went, within Do of the Applier.
	Exchanged func(error)

	// Apply applies entries to the store in use, in one batch of its engine.
	Apply func([]apply.Entry) (apply.Outcome, error)
	// Applied sees what it has done, before anybody else.
	Applied func([]apply.Entry, apply.Outcome, time.Duration)
	// Now returns the time.
	Now func() time.Time

	// AuthChanged is called when a batch has changed who may do what.
	AuthChanged func()
	// MemberChanged is called for each change of the membership.
	MemberChanged func(membership.Effect)
	// TermBegun is called on a leader that has applied the first entry of its term.
	TermBegun func()
	// NoSpace is called when the quota is exceeded.
	NoSpace func()
	// Reconfigured is called when raft, too, works with changes of the membership.
	Reconfigured func()
}

// Home is what a pipeline needs of the files of a member. Each call is durable when it
// returns without an error; one that found no room may be made again.
type Home interface {
	Importer
	// Truncate forgets the log up to index, at which the configuration was cs.
	Truncate(index uint64, cs *raftpb.ConfState) error
}

// NewPipeline returns a pipeline at rest.
func NewPipeline(p Parts, door *Door) *Pipeline {
	pipe := &Pipeline{door: door, core: p.Core}
	pipe.Settler = &Settler{door: door, self: p.Self, props: p.Proposals, reads: p.Reads, hub: p.Hub, lessor: p.Lessor, extend: p.Extend}
	pipe.Settler.lead.Store(p.Core.node.State().Lead)
	pipe.Apply = &Applier{door: door, settler: pipe.Settler, maxRunBytes: p.MaxRunBytes, waiting: newQueue[Work](),
		local: func(e *raftpb.Entry) *proposal.Pending { return PendingOf(p.Proposals, e) }}
	pipe.Log = &Writer{door: door, self: p.Self, applier: pipe.Apply, waiting: newQueue[raftnode.Append](),
		every: p.TruncateEvery, keep: p.Keep, wanted: p.Core.node.State().Applied}
	pipe.Log.mark.Store(p.Mark)
	return pipe
}

// Core gives the driver access to what only a leader knows, between steps.
func (p *Pipeline) Core() *Core { return p.core }

// Step runs the core once and hands on what follows, in order. An error ends the
// member: nothing has followed then, and no step may.
func (p *Pipeline) Step(now time.Time, in Input) *raftnode.LostLogError {
	eff := p.core.Step(now, in)
	if eff.LostLog != nil {
		return eff.LostLog // not one more vote or acknowledgement
	}
	if len(eff.Send) > 0 {
		p.door.Send(eff.Send)
	}
	// The new state is known before anything that waits for the log can go out: who reads
	// by a term must not find the old one when a vote in the new one is on its way.
	p.Settler.follow(eff.State.Lead)
	p.door.Follow(in, eff)
	p.Log.waiting.push(eff.Append...)
	p.Apply.push(eff.Apply)
	if p.Log.truncationDue(eff.State.Applied) {
		p.door.TruncationDue()
	}
	for _, f := range in.Then {
		f()
	}
	return nil
}
