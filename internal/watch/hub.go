// Package watch delivers the changes of the key space to watchers.
//
// In: every published revision with its events, in order, from the apply
// goroutine; past revisions through History; create, cancel and progress
// requests of client streams. Out: a queue of responses per stream, whose event
// bytes are encoded once and shared by all streams. Always true: a watcher that
// is not canceled receives each event that matches it exactly once, in revision
// order, and all events of one revision in one response (or its fragments).
//
// # Live and catching up
//
// A watcher is either synced, and then it is in the index that Publish consults,
// or unsynced, and then CatchUp feeds it from history. Each watcher has a minRev:
// what lies below has been queued for it or is not wanted by it. Hub.rev is the
// newest revision given to Publish. Both, and the state, change only under Hub.mu.
//
// No gap and no duplicate follow from three rules:
//
//  1. The store publishes a revision before Publish is called with it. So history
//     holds at least what the hub has seen, and a revision that a reader could
//     see but Publish has not been called with is still to come.
//  2. Publish gives a synced watcher the events from its minRev on, and no
//     others. If the queue of the stream is full, the watcher becomes unsynced at
//     the revision of the first event it did not get. Thus a synced watcher has
//     everything from minRev to Hub.rev.
//  3. CatchUp scans [from, next) without the lock, then, under the lock, queues
//     what lies at or above minRev, raises minRev to next, and makes the watcher
//     synced only if next > Hub.rev.
//
// No gap: what is below next has been scanned; what is at or above next is
// greater than Hub.rev at that moment, so its Publish waits for the lock and
// finds the watcher in the index. No duplicate: the scan may have run ahead of
// Publish (rule 1), but then minRev is above those revisions and rule 2 leaves
// them out. A new watcher without a start revision is synced at once with minRev
// one above the greater of Hub.rev and the revision of the store, and the same
// argument holds with that minRev in the place of next. A scan that meets a
// concurrent compaction fails as a whole and queues nothing.
//
// Order: a watcher is fed by one side at a time, the side changes under the lock,
// and the queue of a stream is first in, first out. So a progress response that
// is queued while the watchers of the stream are synced comes after every event
// up to Hub.rev, which is the revision it tells.
//
// # Bounds
//
// Publish never waits for a stream. The queue of a stream is bounded by responses
// and bytes, all queues together by bytes; at a bound the watcher falls back to
// history, where it costs a scan that it shares with others, and no memory. An
// empty queue always takes one response, of whatever size, so every stream moves
// on. Answers to requests are bounded by making the caller wait: a client that
// does not read its answers is not read from. Watchers are bounded by the memory
// that they and their keys take, for a stream and for all; at a bound a create is
// refused with "too many requests", and the watchers that are there go on.
package watch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/clock"
	"quorate/internal/metrics"
)

// ErrClosed is returned by the methods of a stream that has been closed.
var ErrClosed = errors.New("watch: stream closed")

// History is the store behind the hub. Safe for concurrent use.
type History interface {
	// Rev returns the newest revision that readers can see.
	Rev() int64
	// CompactRev returns the revision of the last compaction. Events at it are
	// still complete, below they are not.
	CompactRev() int64
	// Scan calls fn for every event from revision from on, in order of revision,
	// up to the newest one or until about maxRevs revisions or maxBytes bytes have
	// been read. It never stops within a revision. next is the first revision that
	// was not read; next == from means that there is nothing at or above from. On
	// an error, also that of a compaction beyond from during the scan, what fn has
	// seen may be incomplete.
	Scan(from int64, maxRevs, maxBytes int, fn func(Event) error) (next int64, err error)
	// PrevKV returns the encoded mvccpb.KeyValue that key had before revision
	// beforeMod, that is at beforeMod-1; nil if there was none or it is compacted.
	// The result must not change later.
	PrevKV(key []byte, beforeMod int64) ([]byte, error)
}

// Options of a Hub. Zero values mean the default in brackets.
type Options struct {
	// FragmentBytes is where responses of watchers that allow it are split: the
	// greatest request plus 512 KiB [2 MiB].
	FragmentBytes int
	// QueueResponses and QueueBytes bound the queue of a stream [4096, 1 MiB].
	QueueResponses int
	QueueBytes     int
	// PendingBytes bounds the events in all queues, shared ones counted once
	// [256 MiB]. Beyond it each stream queues one response at a time.
	PendingBytes int64
	// BatchRevisions and BatchBytes bound one scan of history [1000, 1 MiB].
	// BatchBytes is also where a live response of several revisions is cut.
	BatchRevisions int
	BatchBytes     int
	// WatcherBytes bounds the memory of all watchers, StreamWatcherBytes that of the
	// watchers of one stream [512 MiB, 128 MiB]: about a million and 250,000
	// watchers of short keys.
	WatcherBytes, StreamWatcherBytes int64
	// PassWatchers bounds the watchers that share a scan [512].
	PassWatchers int
	// ControlResponses bounds the answers in a queue before Create, Cancel and
	// Progress wait [64].
	ControlResponses int
	// ProgressInterval is the time after which an idle watcher with
	// progress_notify gets a progress response [10 min; at least 100 ms].
	ProgressInterval time.Duration
	// Jitter returns a number in [0, n); a tenth of the interval times it spreads
	// the streams [no jitter].
	Jitter func(n int64) int64
	// OnError is told about history that cannot be read; the hub tries again.
	// Called without locks held.
	OnError func(error)
}

const minProgressInterval = 100 * time.Millisecond

func (o Options) withDefaults() Options {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&o.FragmentBytes, 2<<20)
	def(&o.QueueResponses, 4096)
	def(&o.QueueBytes, 1<<20)
	def(&o.BatchRevisions, 1000)
	def(&o.BatchBytes, 1<<20)
	def(&o.PassWatchers, 512)
	def(&o.ControlResponses, 64)
	if o.PendingBytes <= 0 {
		o.PendingBytes = 256 << 20
	}
	if o.WatcherBytes <= 0 {
		o.WatcherBytes = 512 << 20
	}
	if o.StreamWatcherBytes <= 0 {
		o.StreamWatcherBytes = 128 << 20
	}
	if o.ProgressInterval <= 0 {
		o.ProgressInterval = 10 * time.Minute
	}
	o.ProgressInterval = max(o.ProgressInterval, minProgressInterval)
	if o.Jitter == nil {
		o.Jitter = func(int64) int64 { return 0 }
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	return o
}

// Hub connects one store with the watch streams of its clients. Publish and
// Restore belong to the apply goroutine, everything else is safe from any
// goroutine. Locks are taken in the order passMu, mu, Stream.mu; those of chunks
// and events, in this order, only with none of the others held.
type Hub struct {
	o       Options
	clk     clock.Clock
	hist    atomic.Pointer[History]
	pending atomic.Int64  // bytes of the chunks in queues
	kick    chan struct{} // wakes Run; holds one

	passMu sync.Mutex // one catch-up pass at a time

	mu       sync.Mutex
	rev      int64 // newest published revision
	gen      int   // counts Restore
	closed   bool
	streams  []*Stream  // each knows its position
	watching int64      // bytes of all watchers
	live     *index     // the synced watchers
	unsynced []*watcher // each knows its position
	passes   int
	deferred []*Stream // wait for the next Publish to answer a progress request
	// Scratch space of Publish.
	touched []*group
	matches []*group
	behind  []*watcher
}

// watcherBytes is about what a watcher takes beside its key and range end.
const watcherBytes = 512

// size is the memory of a watcher, for the bounds.
func (w *watcher) size() int64 { return int64(watcherBytes + len(w.spec.key) + len(w.spec.end)) }

type state uint8

const (
	synced state = iota
	unsynced
	gone // canceled; may still hold its id in the stream
)

// watcher is one watch. Guarded by Hub.mu, except where noted.
type watcher struct {
	stream   *Stream
	id       int64
	owner    string // as given to CreateFor
	spec     spec
	startRev int64 // as requested
	minRev   int64
	state    state
	group    *group // if synced
	pos      int    // in group.watchers or Hub.unsynced
	allPos   int    // in Stream.all
	tickPos  int    // in Stream.notify
	served   int    // the pass that last fed the watcher
	fragment bool
	progress bool
	idle     atomic.Bool // nothing was sent since the last progress tick
}

// NewHub returns a hub that has published everything h holds. CatchUp must be
// driven, by Run or by the caller.
func NewHub(h History, clk clock.Clock, o Options) *Hub {
	hub := &Hub{
		o:    o.withDefaults(),
		clk:  clk,
		kick: make(chan struct{}, 1),
		rev:  h.Rev(),
		live: newIndex(),
	}
	hub.hist.Store(&h)
	return hub
}

func (h *Hub) history() History { return *h.hist.Load() }

// Rev returns the newest published revision.
func (h *Hub) Rev() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rev
}

// Run catches watchers up until ctx ends.
func (h *Hub) Run(ctx context.Context) {
	for {
		for h.CatchUp() {
			if ctx.Err() != nil {
				return
			}
		}
		select {
		case <-h.kick:
		case <-ctx.Done():
			return
		}
	}
}

func (h *Hub) wakeRun() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// Close ends all streams. Later streams are closed from the start.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	streams := slices.Clone(h.streams)
	h.mu.Unlock()
	for _, s := range streams {
		s.Close()
	}
}

// Publish delivers the events of all revisions up to rev that have not been
// published yet, in order of revision. The store must show them to readers
// already. The hub keeps the bytes of events that are watched, but not the slice.
// It takes time in proportion to events and matching watchers and never waits for
// a client.
func (h *Hub) Publish(rev int64, events []Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if rev < h.rev || len(events) > 0 && (events[0].Mod <= h.rev || events[len(events)-1].Mod > rev) {
		panic("watch: revisions published out of order")
	}
	h.rev = rev
	if !h.live.empty() {
		for i := range events {
			h.collectLocked(&events[i])
		}
		for i, g := range h.touched {
			h.deliverLocked(g)
			h.touched[i] = nil
		}
		h.touched = h.touched[:0]
	}
	if len(h.deferred) > 0 {
		for i, s := range h.deferred {
			s.deferred = false
			s.progressLocked()
			h.deferred[i] = nil
		}
		h.deferred = h.deferred[:0]
	}
}

// collectLocked adds an event to the batch of each group that wants it.
func (h *Hub) collectLocked(ev *Event) {
	h.matches = h.live.match(h.matches[:0], ev.Key)
	var e *event // made for the first group that wants it
	for _, g := range h.matches {
		if !g.wants(ev.Delete) {
			continue
		}
		if e == nil {
			e = &event{Event: *ev}
		}
		if len(g.batch) == 0 {
			h.touched = append(h.touched, g)
		}
		g.batch = append(g.batch, e)
	}
}

// deliverLocked queues the batch of a group for its watchers.
func (h *Hub) deliverLocked(g *group) {
	queued := 0
	for rest := g.batch; len(rest) > 0; {
		n := cut(rest, h.o.BatchBytes)
		c := h.newChunk(rest[:n], g.prevKV)
		rest = rest[n:]
		for _, w := range g.watchers {
			skip := c.below(w.minRev)
			if skip == len(c.events) {
				continue
			}
			if !w.stream.push(item{w: w, chunk: c, skip: skip, rev: c.last()}) {
				h.behind = append(h.behind, w)
				continue
			}
			queued += len(c.events) - skip
		}
		// Only now, because it leaves the slice, and before the next chunk.
		for i, w := range h.behind {
			h.desyncLocked(w, c.events[c.below(w.minRev)].Mod)
			h.behind[i] = nil
		}
		h.behind = h.behind[:0]
		h.release(c)
	}
	clear(g.batch)
	g.batch = g.batch[:0]
	if cap(g.batch) > maxIdleBatch {
		g.batch = nil
	}
	metrics.DebuggingMVCCPendingEventsTotal.Add(float64(queued))
}

// maxIdleBatch bounds the scratch space that a group keeps.
const maxIdleBatch = 64

// cut returns how many events go in one response: all, or as many as reach
// limit, up to the end of the revision.
func cut(events []*event, limit int) int {
	size := 0
	for i, e := range events {
		if size >= limit && e.Mod != events[i-1].Mod {
			return i
		}
		size += e.size()
	}
	return len(events)
}

// addLocked puts w, which is in no list, among the synced or the unsynced.
func (h *Hub) addLocked(w *watcher, s state) {
	w.state = s
	if s == synced {
		w.group = h.live.group(w.spec)
		w.pos = len(w.group.watchers)
		w.group.watchers = append(w.group.watchers, w)
		return
	}
	w.pos = len(h.unsynced)
	h.unsynced = append(h.unsynced, w)
	metrics.DebuggingMVCCSlowWatcherTotal.Inc()
	h.wakeRun()
}

// takeLocked takes w out of its list.
func (h *Hub) takeLocked(w *watcher) {
	switch w.state {
	case synced:
		g := w.group
		g.watchers = swapOut(g.watchers, w.pos, listPos)
		if len(g.watchers) == 0 {
			h.live.drop(g)
		}
		w.group = nil
	case unsynced:
		h.unsynced = swapOut(h.unsynced, w.pos, listPos)
		metrics.DebuggingMVCCSlowWatcherTotal.Dec()
	}
}

// swapOut removes the element at i; the last one takes its place and learns so.
func swapOut[T any](xs []*T, i int, pos func(*T) *int) []*T {
	last := len(xs) - 1
	xs[i] = xs[last]
	*pos(xs[i]) = i
	xs[last] = nil
	return xs[:last]
}

func listPos(w *watcher) *int  { return &w.pos }
func allPos(w *watcher) *int   { return &w.allPos }
func tickPos(w *watcher) *int  { return &w.tickPos }
func streamPos(s *Stream) *int { return &s.pos }

// desyncLocked makes a synced watcher unsynced; minRev is the first revision it
// lacks.
func (h *Hub) desyncLocked(w *watcher, minRev int64) {
	h.takeLocked(w)
	w.minRev = max(w.minRev, minRev)
	h.addLocked(w, unsynced)
}

// resyncLocked makes an unsynced watcher synced; it must have all up to Hub.rev.
func (h *Hub) resyncLocked(w *watcher) {
	h.takeLocked(w)
	h.addLocked(w, synced)
}

// killLocked ends a watcher. Its id stays in the stream until it is canceled.
func (h *Hub) killLocked(w *watcher) {
	if w.state == gone {
		return
	}
	h.takeLocked(w)
	w.state = gone
	w.stream.dropProgressLocked(w)
	metrics.DebuggingMVCCWatcherTotal.Dec()
}

// Restore replaces the history after the store has been replaced by a received
// snapshot. The hub has then published everything up to the new revision without
// its events, so every watcher catches up from the new history, or is canceled if
// that is compacted beyond it.
func (h *Hub) Restore(hist History) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hist.Store(&hist)
	h.gen++
	old := h.rev
	h.rev = hist.Rev()
	for _, s := range h.streams {
		for _, w := range s.all {
			if w.state == synced {
				h.desyncLocked(w, old+1)
			}
		}
	}
	for _, s := range h.deferred {
		s.deferred = false
	}
	clear(h.deferred)
	h.deferred = h.deferred[:0]
}

// prevKV returns the value before a revision, or nil.
func (h *Hub) prevKV(key []byte, mod int64) []byte {
	kv, err := h.history().PrevKV(key, mod)
	if err != nil {
		h.o.OnError(err)
		return nil
	}
	return kv
}
