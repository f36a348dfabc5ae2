package replica

import (
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/proposal"
	"quorate/internal/raftnode"
)

// Applier applies committed entries in the order in which the core hands them out.
// Between is safe for concurrent use; all other methods belong to one goroutine.
type Applier struct {
	env         *Env
	settler     *Settler
	local       func(*raftpb.Entry) *proposal.Pending
	maxRunBytes int
	waiting     *queue[Work]
	works       []Work // taken from the queue, not started
	run         *Run   // in progress
}

func (a *Applier) push(applies []raftnode.Apply) {
	for _, x := range applies {
		a.waiting.push(Work{Apply: x})
	}
}

// Between queues do, to be called between two runs of entries, after all work that is
// already queued.
func (a *Applier) Between(do func()) { a.waiting.push(Work{Swap: do}) }

// Wait blocks until there is work and returns true. It returns false once stop is closed
// and the queue is empty.
func (a *Applier) Wait(stop <-chan struct{}) bool {
	if !a.Due() {
		a.works = a.waiting.wait(stop)
	}
	return a.Due()
}

// Take takes queued work without blocking and reports whether there is any to do.
func (a *Applier) Take() bool {
	a.works = append(a.works, a.waiting.take()...)
	return a.Due()
}

// Due reports whether work that was taken is left to do.
func (a *Applier) Due() bool { return a.run != nil || len(a.works) > 0 }

// Left returns the number of entries left in the current run, which it starts if there is
// none; 0 if a call of Between comes next.
func (a *Applier) Left() int {
	if a.begin(); a.run == nil {
		return 0
	}
	return a.run.Len()
}

func (a *Applier) begin() {
	if a.run == nil && len(a.works) > 0 {
		a.run, a.works = NextRun(a.works, a.maxRunBytes, a.local)
	}
}

// Do applies the next entries in one batch, at most limit of them unless limit is 0, and
// delivers the results; or it makes the next call queued by Between. It must not be called
// again after an error: the state in memory may be ahead of the store.
func (a *Applier) Do(limit int) error {
	if a.begin(); a.run == nil {
		swap := a.works[0].Swap
		a.works = a.works[1:]
		swap()
		return nil
	}
	ents := a.run.Batch(limit)
	if len(ents) == 0 {
		a.run = nil
		return nil
	}
	began := a.env.Now()
	out, err := a.env.Apply(ents)
	if err != nil {
		return err
	}
	a.env.Applied(ents, out, a.env.Now().Sub(began))
	a.settler.settle(out, began)
	changes, acks := a.run.Applied(out)
	if a.run.Len() == 0 {
		a.run = nil
	}
	if len(changes)+len(acks) == 0 {
		return nil
	}
	a.env.Core(func(in *Input) {
		in.ConfChanges, in.Acks = append(in.ConfChanges, changes...), append(in.Acks, acks...)
		if len(changes) > 0 {
			in.Then = append(in.Then, func() { a.settler.reconfigured(out, began) })
		}
	})
	return nil
}
