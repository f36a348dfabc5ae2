package replica

import (
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/proposal"
	"quorate/internal/raftnode"
)

// Applier applies what is committed, in the order in which the core hands it out.
// Between is safe for concurrent use; the rest is of one goroutine.
type Applier struct {
	door        *Door
	settler     *Settler
	local       func(*raftpb.Entry) *proposal.Pending
	maxRunBytes int
	waiting     *queue[Work]
	works       []Work // taken, not begun
	run         *Run   // under way
}

func (a *Applier) push(applies []raftnode.Apply) {
	for _, x := range applies {
		a.waiting.push(Work{Apply: x})
	}
}

// Between runs do between two runs of entries, behind all that waits.
func (a *Applier) Between(do func()) { a.waiting.push(Work{Swap: do}) }

// Wait waits until there is work and returns true, or false once stop is closed and
// nothing is left.
func (a *Applier) Wait(stop <-chan struct{}) bool {
	if !a.Due() {
		a.works = a.waiting.wait(stop)
	}
	return a.Due()
}

// Take looks for work that has come meanwhile, without waiting, and reports whether there
// is any now.
func (a *Applier) Take() bool {
	a.works = append(a.works, a.waiting.take()...)
	return a.Due()
}

// Due reports whether something of what was taken is left.
func (a *Applier) Due() bool { return a.run != nil || len(a.works) > 0 }

// Left returns how many entries of the run under way, or of the one that begins, are
// left; 0 if something else comes next.
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

// Do applies the next entries in one batch, at most limit unless that is 0, and tells
// everyone who has to know; or it does what is to be done between two runs. It must not
// be called again after an error: the state in memory may be ahead of the store.
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
	began := a.door.Now()
	out, err := a.door.Apply(ents)
	if err != nil {
		return err
	}
	a.door.Applied(ents, out, a.door.Now().Sub(began))
	a.settler.settle(out, began)
	changes, acks := a.run.Applied(out)
	if a.run.Len() == 0 {
		a.run = nil
	}
	if len(changes)+len(acks) == 0 {
		return nil
	}
	a.door.Core(func(in *Input) {
		in.ConfChanges, in.Acks = append(in.ConfChanges, changes...), append(in.Acks, acks...)
		if len(changes) > 0 {
			in.Then = append(in.Then, func() { a.settler.reconfigured(out, began) })
		}
	})
	return nil
}
