package mvcc

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"quorate/internal/crash"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// trimLeaves bounds how many leaves of the index one background step changes, and so
// how long the step blocks the writer.
const trimLeaves = 100

// compaction is the work that remains after Compact has set the new compact revision:
// trim the index, delete the records, record that it is finished.
type compaction struct {
	rev, prev ids.Revision  // the compact revision and the previous one, -1 for none
	wait      []*epoch      // views that may still read what is to be deleted
	done      chan error    // receives the outcome; capacity 1
	over      chan struct{} // closed at the same time
	began     time.Time
	removed   int

	sum    *summing // the compaction hash, nil if it is not computed
	doomed []doomed // removed from the index, not deleted yet
}

// doomed is the key of a record that is to be deleted.
type doomed struct {
	rev  Revision
	tomb bool
}

// Compact makes revisions that reads at rev and later do not need unreadable, and has
// them deleted in the background once the batch b is committed and published. done
// receives nil when the records are deleted and finishedCompactRev is written, or the
// reason why only the next Open will continue: an error of the engine, or
// engine.ErrClosed if the Store is closed first. Then done is closed. Errors:
// ErrCompacted, ErrFutureRev.
func (s *Store) Compact(b engine.Batch, rev ids.Revision) (done <-chan error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case rev <= s.compactRev:
		return nil, ErrCompacted
	case rev > s.rev:
		return nil, ErrFutureRev
	}
	c := &compaction{rev: rev, prev: s.compactRev, done: make(chan error, 1), over: make(chan struct{})}
	if len(s.scheduled) == 0 && s.sweep.idle() {
		// etcd stores the hash of a compaction only if the previous one was finished.
		c.sum = &summing{}
	}
	b.Set(scheduledKey, AppendRevision(nil, Revision{Main: rev}, false))
	s.compactRev = rev
	s.scheduled = append(s.scheduled, c)
	s.dirty = true
	return c.done, nil
}

// end reports the outcome.
func (c *compaction) end(err error) {
	c.done <- err
	close(c.done)
	close(c.over)
}

// AwaitCompactions returns once the records of every previously published compaction
// are deleted, or when ctx is done.
func (s *Store) AwaitCompactions(ctx context.Context) error {
	c := s.sweep.last()
	if c == nil {
		return nil
	}
	select {
	case <-c.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Compactions counts the compactions that have finished or failed since Open.
func (s *Store) Compactions() int64 { return s.sweep.ended.Load() }

// sweeper runs compactions one after another, in bounded steps.
type sweeper struct {
	mu      sync.Mutex
	jobs    []*compaction
	failed  bool // a compaction could not be finished
	running bool
	stopped bool
	stopc   chan struct{}
	exited  chan struct{}
	ended   atomic.Int64
}

// last returns the last queued compaction, nil if there is none.
func (w *sweeper) last() *compaction {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.jobs) == 0 {
		return nil
	}
	return w.jobs[len(w.jobs)-1]
}

func (w *sweeper) init() { w.stopc = make(chan struct{}) }

// idle reports whether every compaction so far is finished.
func (w *sweeper) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.jobs) == 0 && !w.failed
}

func (w *sweeper) add(s *Store, c *compaction) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		c.end(engine.ErrClosed)
		return
	}
	c.began = s.o.Clock.Now()
	w.jobs = append(w.jobs, c)
	if w.running || s.o.Manual {
		return
	}
	w.running = true
	w.exited = make(chan struct{})
	go crash.Guarded(func() { w.run(s) })()
}

func (w *sweeper) head() *compaction {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.jobs) == 0 || w.stopped {
		return nil
	}
	return w.jobs[0]
}

// pop removes the first compaction.
func (w *sweeper) pop(failed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs = w.jobs[1:]
	w.failed = failed
}

// stop returns when the goroutine, if there is one, has returned. Unfinished
// compactions end with engine.ErrClosed.
func (w *sweeper) stop() {
	w.mu.Lock()
	if !w.stopped {
		w.stopped = true
		close(w.stopc)
	}
	exited := w.exited
	w.mu.Unlock()
	if exited != nil {
		<-exited
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.jobs {
		c.end(engine.ErrClosed)
	}
	w.jobs = nil
}

// run steps until nothing is left. The goroutine then returns.
func (w *sweeper) run(s *Store) {
	defer close(w.exited)
	for {
		// While the engine is behind, a step would make all writers wait.
		for s.eng.Behind() || s.Step() {
			if !w.pause(s) {
				return
			}
		}
		w.mu.Lock()
		if w.stopped || len(w.jobs) == 0 {
			w.running = false
			w.mu.Unlock()
			return
		}
		waits := w.jobs[0].wait
		w.mu.Unlock()
		for _, e := range waits {
			select {
			case <-e.drained:
			case <-w.stopc:
				return
			}
		}
	}
}

// pause waits for the time between two steps. It returns false if the sweeper has to stop.
func (w *sweeper) pause(s *Store) bool {
	tick := make(chan struct{})
	stop := s.o.Clock.AfterFunc(s.o.CompactionPause, func() { close(tick) })
	select {
	case <-tick:
		return true
	case <-w.stopc:
		stop()
		return false
	}
}

// Step does one bounded piece of background work. It returns false if there is none,
// or if it must wait for older views to be closed.
func (s *Store) Step() bool {
	c := s.sweep.head()
	if c == nil {
		return false
	}
	worked, finished, err := s.step(c)
	if err != nil {
		if !errors.Is(err, engine.ErrClosed) {
			s.o.Logger.Error("compaction stopped; it continues after the next start",
				zap.Int64("compact-revision", int64(c.rev)), zap.Error(err))
		}
		s.sweep.pop(true)
		c.end(err)
		s.sweep.ended.Add(1)
		return true
	}
	if finished {
		s.sweep.pop(false)
		s.finish(c)
	}
	return worked
}

func (s *Store) step(c *compaction) (worked, finished bool, err error) {
	if c.sum != nil && !c.sum.scanned {
		return true, false, s.sumStep(c)
	}
	for _, e := range c.wait {
		if !e.isDrained() {
			return false, false, nil
		}
	}
	c.wait = nil
	began := s.o.Clock.Now()
	trimmed := s.trimStep(c)
	if err := s.deleteStep(c, trimmed); err != nil {
		return false, false, fmt.Errorf("delete compacted records: %w", err)
	}
	metrics.DebuggingMVCCDBCompactionPauseDurationMilliseconds.Observe(millis(s.o.Clock.Now().Sub(began)))
	return true, trimmed && len(c.doomed) == 0, nil
}

// trimStep removes garbage from the index, between two transactions, and reports
// whether none is left. The removed records are deleted next.
func (s *Store) trimStep(c *compaction) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	began := s.o.Clock.Now()
	t := trim{rev: c.rev, leaves: trimLeaves, revs: s.o.CompactionBatch - len(c.doomed)}
	if !t.spent() {
		s.tree.compact(&t)
	}
	for i, rev := range t.out {
		c.doomed = append(c.doomed, doomed{rev, t.tombs[i]})
	}
	if !s.dirty && len(t.out) > 0 {
		// No commit is pending: release the untrimmed root.
		st := s.published.Load()
		s.publish(st.rev, st.compactRev)
	}
	metrics.DebuggingMVCCIndexCompactionPauseDurationMilliseconds.Observe(millis(s.o.Clock.Now().Sub(began)))
	return s.tree.root.garb > c.rev
}

// deleteStep deletes the doomed records, sorted by revision, in one batch. The index
// drops the revisions of a key in ascending order, so a crash between two batches never
// leaves a tombstone deleted and an earlier put alive. The last batch contains
// finishedCompactRev.
func (s *Store) deleteStep(c *compaction, last bool) error {
	sort.Slice(c.doomed, func(i, j int) bool { return c.doomed[i].rev.Less(c.doomed[j].rev) })
	b := s.eng.NewBatch()
	var key [1 + TombstoneLen]byte
	key[0] = byte(engine.Key)
	for _, d := range c.doomed {
		b.Delete(AppendRevision(key[:1], d.rev, d.tomb))
	}
	if last {
		b.Set(finishedKey, AppendRevision(nil, Revision{Main: c.rev}, false))
	}
	if err := b.Commit(); err != nil {
		return err
	}
	metrics.DebuggingMVCCDBCompactionKeysTotal.Add(float64(len(c.doomed)))
	c.removed += len(c.doomed)
	c.doomed = c.doomed[:0]
	return nil
}

// finish reports a finished compaction.
func (s *Store) finish(c *compaction) {
	s.keepSum(c)
	now := s.o.Clock.Now()
	metrics.DebuggingMVCCDBCompactionTotalDurationMilliseconds.Observe(millis(now.Sub(c.began)))
	metrics.DebuggingMVCCDBCompactionLast.Set(float64(now.Unix()))
	s.o.Logger.Info("finished scheduled compaction",
		zap.Int64("compact-revision", int64(c.rev)), zap.Duration("took", now.Sub(c.began)),
		zap.Int("number-of-keys-compacted", c.removed))
	c.end(nil)
	s.sweep.ended.Add(1)
}

func millis(d time.Duration) float64 { return float64(d / time.Millisecond) }
