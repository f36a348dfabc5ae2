package replica

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
	"quorate/internal/raftnode"
)

// Log is the raft log that writes go to; see raftlog.Log.
type Log interface {
	Append(hs *raftpb.HardState, ents []*raftpb.Entry, mustSync bool) error
}

// Write is the next work for the log: a group of appends that one sync makes durable, or a
// snapshot to install together with the hard state and entries that came with it.
type Write struct {
	works   []raftnode.Append
	sync    bool
	written int // number of works that were appended
	done    bool
}

// NextWrite takes the next write from the waiting appends, which must not be empty.
func NextWrite(waiting []raftnode.Append) (w Write, rest []raftnode.Append) {
	n := slices.IndexFunc(waiting, func(a raftnode.Append) bool { return a.Snapshot != nil })
	switch n {
	case 0:
		n = 1
	case -1:
		n = len(waiting)
	}
	w.works = joined(waiting[:n])
	for i := range w.works {
		w.sync = w.sync || w.works[i].MustSync
	}
	return w, waiting[n:]
}

// joined returns the appends with those that continue their predecessor as one, so that
// they are one write to the file.
func joined(works []raftnode.Append) []raftnode.Append {
	if len(works) < 2 {
		return works
	}
	out := make([]raftnode.Append, 0, len(works))
	for _, a := range works {
		if len(out) == 0 || !follows(&out[len(out)-1], &a) {
			out = append(out, a)
			continue
		}
		p := &out[len(out)-1]
		if a.HardState != nil {
			p.HardState = a.HardState
		}
		p.Entries = slices.Concat(p.Entries, a.Entries)
		p.MustSync = p.MustSync || a.MustSync
		p.Responses = slices.Concat(p.Responses, a.Responses)
	}
	return out
}

// follows reports whether the entries of a come directly after those of p.
func follows(p, a *raftnode.Append) bool {
	k := len(p.Entries)
	return len(a.Entries) == 0 || k == 0 || a.Entries[0].GetIndex() == p.Entries[k-1].GetIndex()+1
}

// Snapshot returns the snapshot to install, nil if there is none.
func (w *Write) Snapshot() *raftpb.Snapshot { return w.works[0].Snapshot }

// To appends a group in order; the last append syncs for all. If an append failed and left
// nothing in the log, To may be called again and continues from there.
func (w *Write) To(log Log) error {
	last := len(w.works) - 1
	for ; w.written <= last; w.written++ {
		a := &w.works[w.written]
		if w.written < last && a.HardState == nil && len(a.Entries) == 0 {
			continue
		}
		if err := log.Append(a.HardState, a.Entries, w.sync && w.written == last); err != nil {
			return err
		}
	}
	w.done = true
	return nil
}

// Messages returns the messages that waited for durability: own for the core of the member
// self, out for its peers. It panics if the write is not complete.
func (w *Write) Messages(self ids.Member) (own, out []*raftpb.Message) {
	if !w.done {
		panic("replica: asked for the messages of a write that is not durable")
	}
	for i := range w.works {
		for _, r := range w.works[i].Responses {
			if ids.Member(r.GetTo()) == self {
				own = append(own, r)
			} else {
				out = append(out, r)
			}
		}
	}
	return own, out
}
