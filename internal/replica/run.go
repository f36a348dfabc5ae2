package replica

import (
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
)

// Work is either committed entries as raft hands them out, or Swap, a call to make between
// two runs of entries.
type Work struct {
	raftnode.Apply
	Swap func()
}

// Run is a sequence of committed entries that is applied in one or more engine batches and
// acknowledged once, at its end.
type Run struct {
	ents    []apply.Entry
	acks    []*raftpb.Message
	next    int // number of entries that were handed out
	applied int
}

// NextRun takes the entries of the waiting work up to the next Swap and up to about
// maxBytes. It returns a nil run if a Swap is next. local returns the request of this
// member that an entry carries, nil if there is none.
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
				x.Req, x.Foreign, x.Local = p.Req, p.Foreign, true
			}
			r.ents = append(r.ents, x)
		}
		r.acks = append(r.acks, w.Responses...)
	}
	return r, waiting[n:]
}

// Len returns the number of entries that have not been handed out.
func (r *Run) Len() int { return len(r.ents) - r.next }

// Batch returns the entries of the next batch, at most limit of them unless limit is 0, and
// nil at the end of the run.
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

// Applied records the outcome of the last batch. It returns what the core has to be told
// now: the membership changes of the batch and, once the whole run is applied, its
// acknowledgements.
func (r *Run) Applied(out apply.Outcome) (changes []apply.ConfChange, acks []*raftpb.Message) {
	if r.applied = r.next; r.applied == len(r.ents) {
		acks = r.acks
	}
	return out.ConfChanges, acks
}
