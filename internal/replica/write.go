package replica

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/raftnode"
)

// Log is where writes go, as raftlog.Log.
type Log interface {
	Append(hs *raftpb.HardState, ents []*raftpb.Entry, mustSync bool) error
}

// Write is the next work for the log: writes that one sync makes durable, or a
// snapshot that is to be installed, with what came along with it.
type Write struct {
	works   []raftnode.Append
	sync    bool
	written int // works that are in the log
	done    bool
}

// NextWrite takes the next work off those that wait, of which there is at least one.
func NextWrite(waiting []raftnode.Append) (w Write, rest []raftnode.Append) {
	n := slices.IndexFunc(waiting, func(a raftnode.Append) bool { return a.Snapshot != nil })
	switch n {
	case 0:
		n = 1
	case -1:
		n = len(waiting)
	}
	w.works = waiting[:n]
	for i := range w.works {
		w.sync = w.sync || w.works[i].MustSync
	}
	return w, waiting[n:]
}

// Snapshot returns the snapshot that is to be installed, nil if there is none.
func (w *Write) Snapshot() *raftpb.Snapshot { return w.works[0].Snapshot }

// To writes a group in order; the last write syncs for all. After an error that has
// left nothing of the failed write in the log it may be called again and goes on
// from there.
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

// Messages returns what was waiting for durability: for the core of the member self,
// and for its peers.
func (w *Write) Messages(self uint64) (own, out []*raftpb.Message) {
	if !w.done {
		panic("replica: asked for the messages of a write that is not durable")
	}
	for i := range w.works {
		for _, r := range w.works[i].Responses {
			if r.GetTo() == self {
				own = append(own, r)
			} else {
				out = append(out, r)
			}
		}
	}
	return own, out
}
