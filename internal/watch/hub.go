// Package watch delivers changes of the key space to watchers.
//
// In: every published revision with its events, in order, from the apply goroutine; past
// revisions through History; create, cancel and progress requests of client streams. Out:
// a queue of responses per stream, whose events are encoded once and shared by all streams.
// Always true: a watcher that is not canceled receives each matching event exactly once, in
// revision order, and all events of one revision in one response (or its fragments).
//
// # Synced and unsynced watchers
//
// A watcher is either synced, and in the index that Publish consults, or unsynced, and fed
// from history by CatchUp. Each watcher has a minRev: everything below it has been queued for
// the watcher or is not wanted by it. Hub.rev is the newest revision passed to Publish. Both,
// and the state, change only under Hub.mu.
//
// That there are no gaps and no duplicates follows from three rules:
//
//  1. The store publishes a revision before Publish is called with it. So history contains at
//     least what the hub has seen, and for a revision that readers can see but the hub has
//     not, the call of Publish is still to come.
//  2. Publish gives a synced watcher the events from its minRev on, and no others. If the
//     queue of the stream is full, the watcher becomes unsynced at the revision of the first
//     event that it did not get. Thus a synced watcher has everything from minRev to Hub.rev.
//  3. CatchUp scans [from, next) without the lock. Then, under the lock, it queues what is at
//     or above minRev, raises minRev to next, and marks the watcher synced only if
//     next > Hub.rev.
//
// No gap: everything below next has been scanned; everything at or above next is above
// Hub.rev at that moment, so its Publish waits for the lock and finds the watcher in the
// index. No duplicate: the scan may have run ahead of Publish (rule 1), but then minRev is
// above those revisions, and rule 2 omits them. A new watcher without a start revision is
// synced immediately, with minRev one above the greater of Hub.rev and the store's revision;
// the same argument holds with that minRev in place of next. A scan that overlaps a compaction
// of its range fails, and queues nothing.
//
// Order: at any time a watcher is fed either by Publish or by CatchUp, the switch happens
// under the lock, and the queue of a stream is first in, first out. So a progress response
// that is queued while all watchers of the stream are synced follows every event up to
// Hub.rev, which is the revision it reports.
//
// # Bounds
//
// Publish never blocks on a stream. The queue of a stream is bounded in responses and bytes,
// all queues together in bytes; at a bound the watcher falls back to history, where it costs a
// share of a scan, and no memory. An empty queue always accepts one response of any size, so
// every stream makes progress. Responses to requests are bounded by blocking the caller: a
// client that does not read its responses is not read from. Watchers are bounded by the memory
// of the watchers and their keys, per stream and in total; at a bound a create is refused with
// "too many requests", and existing watchers are unaffected.
package watch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// ErrClosed is returned by the methods of a stream that has been closed.
var ErrClosed = errors.New("watch: stream closed")

// History is the store behind the hub. Implementations must be safe for concurrent use.
type History interface {
	// Rev returns the newest revision visible to readers.
	Rev() ids.Revision
	// CompactRev returns the last compacted revision. Events are complete from that
	// revision on.
	CompactRev() ids.Revision
	// Scan calls fn for every event from revision from on, in revision order, up to the
	// newest one or until about maxRevs revisions or maxBytes bytes have been read. It
	// never stops within a revision. next is the first revision that was not read;
	// next == from means that there is nothing at or above from. If Scan returns an
	// error, which it also does if from is compacted during the scan, fn may have seen
	// incomplete data.
	Scan(from ids.Revision, maxRevs, maxBytes int, fn func(Event) error) (next ids.Revision, err error)
	// PrevKV returns the encoded mvccpb.KeyValue of key at revision beforeMod-1; nil if
	// there was none or it has been compacted. The result must not change later.
	PrevKV(key []byte, beforeMod ids.Revision) ([]byte, error)
}

// Options configures a Hub. Zero values mean the default given in brackets.
type Options struct {
	// FragmentBytes is the size at which responses are split for watchers that allow it:
	// the request limit plus 512 KiB [2 MiB].
	FragmentBytes int
	// QueueResponses and QueueBytes limit the queue of a stream [4096, 1 MiB].
	QueueResponses int
	QueueBytes     int
	// PendingBytes limits the events in all queues, counting shared ones once [256 MiB].
	// Beyond it each stream queues one response at a time.
	PendingBytes int64
	// BatchRevisions and BatchBytes limit one scan of history [1000, 1 MiB]. BatchBytes is
	// also the size at which a live response of several revisions is cut.
	BatchRevisions int
	BatchBytes     int
	// WatcherBytes limits the memory of all watchers, StreamWatcherBytes that of the
	// watchers of one stream [512 MiB, 128 MiB]: about a million and 250,000 watchers of
	// short keys.
	WatcherBytes, StreamWatcherBytes int64
	// PassWatchers limits the number of watchers that share a scan [512].
	PassWatchers int
	// ControlResponses is the number of queued responses to requests at which Create,
	// Cancel and Progress block [64].
	ControlResponses int
	// ProgressInterval is the time after which an idle watcher with progress_notify gets
	// a progress response [10 min; at least 100 ms].
	ProgressInterval time.Duration
	// Jitter returns a number in [0, n). It is added to the interval of a stream, with n a
	// tenth of it, to spread the streams [no jitter].
	Jitter func(n int64) int64
	// OnError is called without locks held if history cannot be read; the hub retries.
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

// Hub connects a store with the watch streams of its clients. Publish and Restore must be
// called by the apply goroutine; all other methods are safe for concurrent use. The lock
// order is passMu, mu, Stream.mu; the locks of chunks and events, in this order, are taken
// only while none of the others is held.
type Hub struct {
	o       Options
	clk     clock.Clock
	hist    atomic.Pointer[History]
	pending atomic.Int64  // size of the chunks in queues
	kick    chan struct{} // wakes Run; capacity 1

	passMu sync.Mutex // held during a catch-up pass

	mu       sync.Mutex
	rev      ids.Revision // newest published revision
	gen      int          // incremented by Restore
	closed   bool
	streams  []*Stream  // each stream knows its position
	watching int64      // size of all watchers
	live     *index     // synced watchers
	unsynced []*watcher // each watcher knows its position
	passes   int
	barren   int       // passes in a row that fed no watcher
	deferred []*Stream // streams whose progress request waits for the next Publish
	// Scratch space of Publish.
	touched []*group
	matches []*group
	behind  []*watcher
	asleep  []*Stream
}

// watcherBytes is the approximate size of a watcher without its key and range end.
const watcherBytes = 512

// size returns the memory of a watcher, for the limits.
func (w *watcher) size() int64 { return int64(watcherBytes + len(w.spec.key) + len(w.spec.end)) }

type state uint8

const (
	synced state = iota
	unsynced
	gone // canceled; its ID may still be in use on the stream
)

// watcher is one watch. Guarded by Hub.mu, except idle.
type watcher struct {
	stream   *Stream
	id       int64
	owner    string // as given to CreateFor
	spec     spec
	startRev ids.Revision // as requested
	minRev   ids.Revision
	state    state
	group    *group // if synced
	pos      int    // in group.watchers or Hub.unsynced
	allPos   int    // in Stream.all
	tickPos  int    // in Stream.notify
	served   int    // number of the pass that last fed it
	fragment bool
	progress bool
	idle     atomic.Bool // nothing was sent since the last progress tick
}

// NewHub returns a hub that regards everything in h as published. CatchUp must be called
// repeatedly, by Run or by the caller.
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
func (h *Hub) Rev() ids.Revision {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rev
}

// Run catches up unsynced watchers until ctx is done.
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

// Close closes all streams. Streams opened later are closed from the start.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	streams := slices.Clone(h.streams)
	h.mu.Unlock()
	for _, s := range streams {
		s.Close()
	}
}

// Publish delivers the events of all revisions up to rev that have not been published yet,
// in revision order. They must already be visible to readers of the store. The hub retains
// the bytes of events that have watchers, but not the slice. Publish takes time proportional
// to the events and matching watchers, and never blocks on a client.
func (h *Hub) Publish(rev ids.Revision, events []Event) {
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

// collectLocked adds an event to the batch of each group that matches it.
func (h *Hub) collectLocked(ev *Event) {
	h.matches = h.live.match(h.matches[:0], ev.Key)
	var e *event // created for the first group that needs it
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
		for i, w := range g.watchers {
			skip := c.below(w.minRev)
			if skip == len(c.events) {
				continue
			}
			ok, asleep := w.stream.enqueue(item{w: w, chunk: c, skip: skip, rev: c.last()})
			if asleep {
				h.asleep = append(h.asleep, w.stream)
			}
			if i%rouseAfter == rouseAfter-1 {
				h.rouseLocked()
			}
			if !ok {
				h.behind = append(h.behind, w)
				continue
			}
			queued += len(c.events) - skip
		}
		h.rouseLocked()
		// Not in the loop above, because it modifies g.watchers, but before the next chunk.
		for i, w := range h.behind {
			h.desyncLocked(w, c.events[c.below(w.minRev)].Mod)
			h.behind[i] = nil
		}
		h.behind = h.behind[:0]
		h.release(c, 1)
	}
	clear(g.batch)
	g.batch = g.batch[:0]
	if cap(g.batch) > maxIdleBatch {
		g.batch = nil
	}
	metrics.DebuggingMVCCPendingEventsTotal.Add(float64(queued))
}

// rouseAfter is the number of watchers that get an event before the streams that wait for it are
// woken: a stream takes the responses of several watchers at once.
const rouseAfter = 1024

// rouseLocked wakes the streams that have got their first response.
func (h *Hub) rouseLocked() {
	for i, s := range h.asleep {
		s.rouse()
		h.asleep[i] = nil
	}
	h.asleep = h.asleep[:0]
}

// maxIdleBatch limits the scratch space that a group retains.
const maxIdleBatch = 64

// cut returns the number of events for one response: all, or as many as reach limit, rounded
// up to the end of the revision.
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

// addLocked adds w, which is in no list, to the synced or unsynced watchers.
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

// takeLocked removes w from its list.
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

// swapOut removes element i. The last element moves there, and its position is updated.
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

// desyncLocked makes a synced watcher unsynced. minRev is the first revision that it lacks.
func (h *Hub) desyncLocked(w *watcher, minRev ids.Revision) {
	h.takeLocked(w)
	w.minRev = max(w.minRev, minRev)
	h.addLocked(w, unsynced)
}

// resyncLocked makes an unsynced watcher synced. It must have everything up to Hub.rev.
func (h *Hub) resyncLocked(w *watcher) {
	h.takeLocked(w)
	h.addLocked(w, synced)
}

// killLocked ends a watcher. Its ID stays in use on the stream until it is canceled.
func (h *Hub) killLocked(w *watcher) {
	if w.state == gone {
		return
	}
	h.takeLocked(w)
	w.state = gone
	w.stream.dropProgressLocked(w)
	metrics.DebuggingMVCCWatcherTotal.Dec()
}

// Restore replaces the history after a received snapshot has replaced the store. The hub
// regards everything up to the new revision as published, without events, so every watcher
// catches up from the new history, or is canceled if that is compacted beyond the watcher.
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
func (h *Hub) prevKV(key []byte, mod ids.Revision) []byte {
	kv, err := h.history().PrevKV(key, mod)
	if err != nil {
		h.o.OnError(err)
		return nil
	}
	return kv
}
