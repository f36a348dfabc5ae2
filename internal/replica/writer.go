package replica

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/raftnode"
)

// Writer is the work on the log: one job after another, in the order in which the core
// hands it out. Truncate and Mark are safe for concurrent use; the rest is of one
// goroutine.
type Writer struct {
	door    *Door
	self    uint64
	applier *Applier
	waiting *queue[raftnode.Append]
	works   []raftnode.Append // taken, not begun
	group   Write             // under way if writing
	writing bool
	install *Install // under way

	every, keep uint64
	wanted      uint64 // applied index for which a truncation was last asked for; of the core's goroutine
	mark        atomic.Uint64
	mu          sync.Mutex
	replacing   bool // guarded by mu: the store or the log is about to be replaced
}

// Wait waits until there is a job and returns true, or false once stop is closed and
// nothing is left.
func (w *Writer) Wait(stop <-chan struct{}) bool {
	if len(w.works) == 0 {
		w.works = w.waiting.wait(stop)
	}
	return len(w.works) > 0
}

// Take looks for work that has come meanwhile, without waiting, and reports whether there
// is any now.
func (w *Writer) Take() bool {
	w.works = append(w.works, w.waiting.take()...)
	return w.writing || w.install != nil || len(w.works) > 0
}

// Due returns the next job for what was taken, Idle if all of that is done.
func (w *Writer) Due() Job {
	if !w.writing && w.install == nil && len(w.works) > 0 {
		if w.group, w.works = NextWrite(w.works); w.group.Snapshot() != nil {
			w.install = w.group.Install()
		} else {
			w.writing = true
		}
	}
	switch {
	case w.writing:
		return Append
	case w.install != nil:
		return w.install.Job()
	}
	return Idle
}

// Snapshot returns the snapshot that is being installed, nil without one.
func (w *Writer) Snapshot() *raftpb.Snapshot {
	if w.install == nil {
		return nil
	}
	return w.install.Snapshot()
}

// Do does the job that is due; Done has to follow. After an error that has left nothing
// behind it may be called again. An exchange only begins here, as it happens between two
// runs of entries: Door.Exchanged tells how it went, and Done is for then.
func (w *Writer) Do(ctx context.Context) error {
	switch job := w.Due(); job {
	case Append:
		return w.group.To(w.door.WriteTo)
	case Exchange:
		w.hold(true)
		meta := w.install.Snapshot().GetMetadata()
		w.applier.Between(func() { w.door.Exchanged(w.door.Exchange(meta)) })
		return nil
	case Import, Reset, Follow:
		return w.install.Do(ctx, w.door.Home(), w.door.WriteTo)
	default:
		return fmt.Errorf("replica: there is no work for the log (%q)", job)
	}
}

// Done tells that the job is done, durably. Once a write or an installation is complete,
// what was waiting for it goes out.
func (w *Writer) Done() {
	if w.Due() == Append {
		own, out := w.group.Messages(w.self)
		w.group, w.writing = Write{}, false
		w.deliver(own, out)
		return
	}
	if w.install.Done(); w.install.Job() == Idle {
		w.installed()
	}
}

func (w *Writer) installed() {
	i := w.install
	w.install = nil
	w.mark.Store(i.Snapshot().GetMetadata().GetIndex())
	w.hold(false)
	w.deliver(i.Messages(w.self))
}

// deliver sends what was waiting for durability.
func (w *Writer) deliver(own, out []*raftpb.Message) {
	if len(out) > 0 {
		w.door.Send(out)
	}
	if len(own) > 0 {
		w.door.Core(func(in *Input) { in.Acks = append(in.Acks, own...) })
	}
}

// hold keeps truncations from measuring an old store against a new log.
func (w *Writer) hold(on bool) {
	w.mu.Lock()
	w.replacing = on
	w.mu.Unlock()
}

// Mark returns the index behind which the log begins.
func (w *Writer) Mark() uint64 { return w.mark.Load() }

func (w *Writer) truncationDue(applied uint64) bool {
	if applied <= w.wanted+w.every {
		return false
	}
	w.wanted = applied
	return true
}

// Truncate forgets the entries of the log that every crash can do without: the store
// has flushed them, and slow followers still find some. raft may read what it does not
// count as applied, also while the store has it already, so its index decides: acked is
// that, from before the flush. cs is the configuration of the store that was flushed;
// unless says, when nothing can change any more, that it is not in use now, or that
// somebody needs the entries. The index is 0 if nothing was forgotten.
func (w *Writer) Truncate(acked uint64, cs *raftpb.ConfState, unless func() bool) (index uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	index, ok := TruncateTo(acked, w.mark.Load(), w.keep)
	if w.replacing || !ok || unless() {
		return 0, nil
	}
	if err := w.door.Home().Truncate(index, cs); err != nil {
		return 0, err
	}
	w.mark.Store(index)
	return index, nil
}

// TruncateTo returns the index up to which the log may be forgotten, if there is
// anything to forget: acked is the index up to which raft knows that entries are
// applied, mark is where the log begins, and keep the number of entries that slow
// followers are to find.
func TruncateTo(acked, mark, keep uint64) (index uint64, ok bool) {
	if acked <= mark+keep {
		return 0, false
	}
	return acked - keep, true
}
