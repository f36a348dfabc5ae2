package replica

import (
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
)

// Work is a run of committed entries as raft hands it out, or the exchange of the
// whole state between two runs.
type Work struct {
	raftnode.Apply
	Swap func()
}

// Run is committed entries that are applied one after the other, in one or several
// batches of the engine, and acknowledged as a whole.
type Run struct {
	ents    []apply.Entry
	acks    []*raftpb.Message
	next    int // entries that were handed out
	applied int
}

// NextRun takes the entries that wait, up to the next exchange and to about maxBytes,
// off the work that waits. It returns nil if an exchange is next. local returns the
// request of this member that an entry carries.
func NextRun(waiting []Work, maxBytes int, local func(*raftpb.Entry) *proposal.Pending) (r *Run, rest []Work) {
	n, size, total, acks := 0, 0, 0, 0
	for n < len(waiting) && waiting[n].Swap == nil && (n == 0 || size < maxBytes) {
		for _, e := range waiting[n].Entries {
			size += len(e.Data)
		}
		total += len(waiting[n].Entries)
		acks += len(waiting[n].Responses)
		n++
	}
	if n == 0 {
		return nil, waiting
	}
	r = &Run{ents: make([]apply.Entry, 0, total), acks: make([]*raftpb.Message, 0, acks)}
	for _, w := range waiting[:n] {
		for _, e := range w.Entries {
			x := apply.Entry{Entry: e}
			if p := local(e); p != nil {
				x.Req, x.V2, x.Local = p.Req, p.V2, true
			}
			r.ents = append(r.ents, x)
		}
		r.acks = append(r.acks, w.Responses...)
	}
	return r, waiting[n:]
}

// Len returns the number of entries that have not been handed out.
func (r *Run) Len() int { return len(r.ents) - r.next }

// Batch hands out the entries of the next batch, at most limit unless that is 0; it
// returns nil at the end.
func (r *Run) Batch(limit int) []apply.Entry {
	from := r.next
	if r.next = len(r.ents); limit > 0 {
		r.next = min(from+limit, r.next)
	}
	if from == r.next {
		return nil
	}
	return r.ents[from:r.next]
}

// Applied tells what has become of the batch that was handed out last. It returns what
// the core has to hear now: the membership changes of the batch, and when all of the
// run is applied, its acknowledgements.
func (r *Run) Applied(out apply.Outcome) (changes []apply.ConfChange, acks []*raftpb.Message) {
	if r.applied = r.next; r.applied == len(r.ents) {
		acks = r.acks
	}
	return out.ConfChanges, acks
}
