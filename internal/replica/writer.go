package replica

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
	"quorate/internal/raftnode"
)

// Writer does the log work one job after another, in the order in which the core hands it
// out. Truncate and Mark are safe for concurrent use; all other methods belong to one
// goroutine.
type Writer struct {
	env     *Env
	self    ids.Member
	applier *Applier
	waiting *queue[raftnode.Append]
	works   []raftnode.Append // taken from the queue, not started
	group   Write             // in progress if writing
	writing bool
	install *Install // in progress, nil if none

	every, keep uint64
	wanted      ids.Index // applied index at which a truncation was last requested; used by Step only
	mark        atomic.Uint64
	mu          sync.Mutex
	replacing   bool // guarded by mu: the store or the log is about to be replaced
}

// push queues appends. Those for which nothing waits do not wake the goroutine: a new commit
// index, one for each group of entries, is written with the next group. A newer one
// replaces it, so they do not accumulate.
func (w *Writer) push(works []raftnode.Append) {
	urgent := false
	w.waiting.edit(func(items []raftnode.Append) []raftnode.Append {
		for _, a := range works {
			lazy := a.Lazy()
			urgent = urgent || !lazy
			if k := len(items); lazy && k > 0 && items[k-1].Lazy() {
				if a.HardState != nil {
					items[k-1] = a
				}
				continue
			}
			items = append(items, a)
		}
		return items
	})
	if urgent {
		w.waiting.rouse()
	}
}

// Wait blocks until there is a job and returns true. It returns false once stop is closed
// and the queue is empty.
func (w *Writer) Wait(stop <-chan struct{}) bool {
	if len(w.works) == 0 {
		w.works = w.waiting.wait(stop)
	}
	return len(w.works) > 0
}

// Take takes queued work without blocking and reports whether there is any to do.
func (w *Writer) Take() bool {
	w.works = append(w.works, w.waiting.take()...)
	return w.writing || w.install != nil || len(w.works) > 0
}

// Due returns the next job of the work that was taken, Idle if all of it is done.
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

// Snapshot returns the snapshot that is being installed, nil if there is none.
func (w *Writer) Snapshot() *raftpb.Snapshot {
	if w.install == nil {
		return nil
	}
	return w.install.Snapshot()
}

// Do runs the job that is due; Done has to follow. After an error that left no trace, such
// as a full disk, it may be called again. For an exchange Do only queues it between two
// runs of entries: call Done after Env.Exchanged has reported success.
func (w *Writer) Do(ctx context.Context) error {
	switch job := w.Due(); job {
	case Append:
		return w.group.To(w.env.WriteTo)
	case Exchange:
		w.hold(true)
		meta := w.install.Snapshot().GetMetadata()
		w.applier.Between(func() { w.env.Exchanged(w.env.Exchange(meta)) })
		return nil
	case Import, Reset, Follow:
		return w.install.Do(ctx, w.env.Home(), w.env.WriteTo)
	default:
		return fmt.Errorf("replica: there is no work for the log (%q)", job)
	}
}

// Done records that the job is complete and durable. Once a write or an installation is
// complete, the messages that waited for it are sent.
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

// deliver sends the messages that waited for durability.
func (w *Writer) deliver(own, out []*raftpb.Message) {
	if out = raftnode.NewestAcks(out); len(out) > 0 {
		w.env.Send(out)
	}
	if len(own) > 0 {
		w.env.Core(func(in *Input) { in.Acks = append(in.Acks, own...) })
	}
}

// hold disables truncation, so that an old store is not compared with a new log.
func (w *Writer) hold(on bool) {
	w.mu.Lock()
	w.replacing = on
	w.mu.Unlock()
}

// Mark returns the index after which the log begins.
func (w *Writer) Mark() ids.Index { return ids.Index(w.mark.Load()) }

func (w *Writer) truncationDue(applied ids.Index) bool {
	if applied <= w.wanted+ids.Index(w.every) {
		return false
	}
	w.wanted = applied
	return true
}

// Truncate drops log entries that no recovery needs any more: the store has flushed them,
// and keep entries are retained for slow followers. The limit is raft's own applied index,
// acked, read before the flush: raft may still read later entries even if the store has
// applied them. cs is the configuration of the flushed store. unless is called with
// installations held off; if it reports true (the store is not in use any more, or the
// entries are needed), nothing is dropped. The index is 0 if nothing was dropped.
func (w *Writer) Truncate(acked ids.Index, cs *raftpb.ConfState, unless func() bool) (index ids.Index, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	index, ok := TruncateTo(acked, ids.Index(w.mark.Load()), w.keep)
	if w.replacing || !ok || unless() {
		return 0, nil
	}
	if err := w.env.Home().Truncate(index, cs); err != nil {
		return 0, err
	}
	w.mark.Store(uint64(index))
	return index, nil
}

// TruncateTo returns the index up to which the log may be dropped, and whether there is
// anything to drop. acked is raft's applied index, mark the index after which the log
// begins, and keep the number of entries to retain for slow followers.
func TruncateTo(acked, mark ids.Index, keep uint64) (index ids.Index, ok bool) {
	if acked <= mark+ids.Index(keep) {
		return 0, false
	}
	return acked - ids.Index(keep), true
}
