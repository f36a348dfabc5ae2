package watch

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// Reasons for refusing a create, as clients know them.
const (
	reasonEmptyRange  = "mvcc: watcher range is empty"
	reasonTooMany     = "etcdserver: too many requests"
	reasonDuplicateID = "mvcc: duplicate watch ID provided on the WatchStream"
)

// Stream is a client's watch stream: its watchers, and the queue of its responses. Create,
// Refuse, Cancel and Progress may be called by the goroutine that receives requests, Next and
// TryNext by the one that sends responses. Close must be called at the end.
type Stream struct {
	hub  *Hub
	ctx  context.Context
	done chan struct{} // closed by Close
	wake chan struct{} // wakes Next when an item is queued; capacity 1
	room chan struct{} // signals that a response to a request was taken; capacity 1

	// Guarded by Hub.mu.
	gone     bool
	pos      int                // position in Hub.streams
	watchers map[int64]*watcher // by ID, including dead ones
	all      []*watcher         // the same; each watcher knows its position
	nextID   int64
	watching int64      // size of the watchers
	notify   []*watcher // watchers with progress_notify; each knows its position
	interval time.Duration
	stopTick func() bool // nil unless the timer is running
	ticks    int         // number of the current timer: one that has fired while being stopped is ignored
	deferred bool        // in Hub.deferred

	watched atomic.Int32 // len(all)

	mu      sync.Mutex // guards the rest
	closed  bool
	waiting bool // Next is waiting for wake
	starved bool // a watcher was left unsynced because the queue was full
	queue   []item
	head    int
	events  int // queued responses that count against QueueResponses
	bytes   int // their size
	answers int // queued responses that count against ControlResponses

	// rest is the remainder of a response that is being split. Used only by Next and TryNext.
	rest Response
}

// item is a queued response: either resp, or the events of chunk for w, which are encoded
// when the item is taken.
type item struct {
	resp   *Response
	w      *watcher
	chunk  *chunk
	rev    ids.Revision // of the header
	skip   int          // number of leading events of chunk that w must not get
	size   int
	answer bool // counts against ControlResponses
}

// NewStream opens a stream. If ctx is done, its methods return, but only Close releases its
// resources.
func (h *Hub) NewStream(ctx context.Context) *Stream {
	s := &Stream{
		hub:      h,
		ctx:      ctx,
		done:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
		room:     make(chan struct{}, 1),
		watchers: make(map[int64]*watcher),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		s.gone, s.closed = true, true
		close(s.done)
		return s
	}
	s.pos = len(h.streams)
	h.streams = append(h.streams, s)
	metrics.DebuggingMVCCWatchStreamTotal.Inc()
	return s
}

// Close cancels the watchers without responses and drops the queue.
func (s *Stream) Close() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.gone {
		return
	}
	s.gone = true
	s.stopTickLocked()
	for _, w := range s.all {
		h.killLocked(w)
	}
	s.countLocked(-s.watching)
	s.watchers, s.all, s.notify = nil, nil, nil
	if s.deferred {
		h.deferred = slices.DeleteFunc(h.deferred, func(x *Stream) bool { return x == s })
	}
	h.streams = swapOut(h.streams, s.pos, streamPos)
	metrics.DebuggingMVCCWatchStreamTotal.Dec()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	dropped := 0
	for _, it := range s.queue[s.head:] {
		if it.chunk != nil {
			dropped += len(it.chunk.events) - it.skip
			h.release(it.chunk, 1)
		}
	}
	s.queue, s.head = nil, 0
	metrics.DebuggingMVCCPendingEventsTotal.Sub(float64(dropped))
	close(s.done)
}

// Create adds a watcher and queues the response, which precedes all its events. It blocks
// while the client leaves too many responses unread. It returns only ErrClosed and the error
// of the stream's context: if the create is refused, the response says so.
func (s *Stream) Create(req *pb.WatchCreateRequest) error { return s.CreateFor("", req) }

// CreateFor is Create for a user, whom Recheck passes to its callback.
func (s *Stream) CreateFor(owner string, req *pb.WatchCreateRequest) error {
	if err := s.awaitRoom(); err != nil {
		return err
	}
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.gone {
		return ErrClosed
	}
	cur := h.currentLocked()
	id, sp, reason := s.admitLocked(req)
	if reason != "" {
		s.refuse(cur, reason)
		return nil
	}
	w := &watcher{
		stream:   s,
		id:       id,
		owner:    owner,
		spec:     sp,
		startRev: ids.Revision(req.StartRevision),
		minRev:   ids.Revision(req.StartRevision),
		fragment: req.Fragment,
		progress: req.ProgressNotify,
	}
	if w.startRev == 0 {
		w.minRev = cur + 1
	}
	if size := w.size(); s.watching+size > h.o.StreamWatcherBytes || h.watching+size > h.o.WatcherBytes {
		s.refuse(cur, reasonTooMany)
		return nil
	}
	s.countLocked(w.size())
	s.watchers[id] = w
	w.allPos = len(s.all)
	s.all = append(s.all, w)
	s.watched.Store(int32(len(s.all)))
	s.push(item{answer: true, resp: &Response{WatchID: id, Revision: cur, Created: true}})
	st := synced
	if w.minRev <= cur {
		st = unsynced
	}
	h.addLocked(w, st)
	if w.progress {
		w.idle.Store(true)
		w.tickPos = len(s.notify)
		s.notify = append(s.notify, w)
		s.startTickLocked()
	}
	metrics.DebuggingMVCCWatcherTotal.Inc()
	return nil
}

// countLocked adds to the memory of the watchers. A watcher that was ended by a compaction
// counts until the client cancels it.
func (s *Stream) countLocked(bytes int64) {
	s.watching += bytes
	s.hub.watching += bytes
}

// admitLocked validates a create request and picks the ID. reason is "" if it is valid.
func (s *Stream) admitLocked(req *pb.WatchCreateRequest) (id int64, sp spec, reason string) {
	sp = spec{key: string(req.Key), end: string(req.RangeEnd), prevKV: req.PrevKv}
	if sp.key == "" {
		sp.key = "\x00" // the smallest key
	}
	if sp.end == "\x00" {
		sp.end, sp.open = "", true
	}
	for _, f := range req.Filters {
		switch f {
		case pb.WatchCreateRequest_NOPUT:
			sp.noPut = true
		case pb.WatchCreateRequest_NODELETE:
			sp.noDelete = true
		}
	}
	switch {
	case req.StartRevision < 0:
		return 0, sp, rpctypes.ErrCompacted.Error()
	case sp.end != "" && sp.key >= sp.end:
		return 0, sp, reasonEmptyRange
	}
	if id = req.WatchId; id != 0 {
		if s.watchers[id] != nil {
			return 0, sp, reasonDuplicateID
		}
		return id, sp, ""
	}
	for s.watchers[s.nextID] != nil {
		s.nextID++
	}
	s.nextID++
	return s.nextID - 1, sp, ""
}

// Refuse queues the response to a create that the caller does not permit. It blocks like
// Create.
func (s *Stream) Refuse(reason string) error {
	if err := s.awaitRoom(); err != nil {
		return err
	}
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	s.refuse(h.currentLocked(), reason)
	return nil
}

func (s *Stream) refuse(rev ids.Revision, reason string) {
	s.push(item{answer: true, resp: &Response{
		WatchID: InvalidID, Revision: rev, Created: true, Canceled: true, CancelReason: reason,
	}})
}

// Cancel ends a watcher. Events already queued are still sent, then the response. An unknown
// ID is ignored. It blocks like Create.
func (s *Stream) Cancel(id int64) error {
	if err := s.awaitRoom(); err != nil {
		return err
	}
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	w := s.watchers[id]
	if w == nil {
		return nil
	}
	s.removeLocked(w)
	s.push(item{answer: true, resp: &Response{WatchID: id, Revision: h.currentLocked(), Canceled: true}})
	return nil
}

// removeLocked ends a watcher and releases its ID.
func (s *Stream) removeLocked(w *watcher) {
	s.hub.killLocked(w)
	s.countLocked(-w.size())
	delete(s.watchers, w.id)
	s.all = swapOut(s.all, w.allPos, allPos) // the last one moves there
	s.watched.Store(int32(len(s.all)))
}

// Progress queues a progress response for all watchers if there are any and all of them are
// synced; otherwise it does nothing. If the store is ahead of the hub, which lasts
// microseconds, the response waits for the hub. It blocks like Create.
func (s *Stream) Progress() error {
	if err := s.awaitRoom(); err != nil {
		return err
	}
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case s.gone:
		return ErrClosed
	case h.currentLocked() == h.rev:
		s.progressLocked()
	case !s.deferred:
		s.deferred = true
		h.deferred = append(h.deferred, s)
	}
	return nil
}

// progressLocked queues the response to a progress request if all watchers are synced.
func (s *Stream) progressLocked() {
	watching := false
	for _, w := range s.all {
		if w.state == gone {
			continue
		}
		if !s.hub.doneLocked(w) {
			return
		}
		watching = true
	}
	if watching {
		s.push(item{answer: true, resp: &Response{WatchID: InvalidID, Revision: s.hub.rev}})
	}
}

// doneLocked reports whether everything up to Hub.rev has been queued for w, and w has
// started.
func (h *Hub) doneLocked(w *watcher) bool {
	return w.state == synced && w.startRev <= h.rev && w.minRev <= h.rev+1
}

// currentLocked returns the newest revision visible to readers.
func (h *Hub) currentLocked() ids.Revision { return max(h.rev, h.history().Rev()) }

func (s *Stream) startTickLocked() {
	if s.stopTick != nil {
		return
	}
	if s.interval == 0 {
		s.interval = s.hub.o.ProgressInterval
		s.interval += time.Duration(s.hub.o.Jitter(int64(s.interval / 10)))
	}
	s.ticks++
	n := s.ticks
	s.stopTick = s.hub.clk.AfterFunc(s.interval, func() { s.tick(n) })
}

func (s *Stream) stopTickLocked() {
	if s.stopTick != nil {
		s.stopTick()
		s.stopTick = nil
		s.ticks++
	}
}

func (s *Stream) dropProgressLocked(w *watcher) {
	if !w.progress {
		return
	}
	s.notify = swapOut(s.notify, w.tickPos, tickPos)
	if len(s.notify) == 0 {
		s.stopTickLocked()
	}
}

// tick sends progress responses to the watchers that had no events since the last tick.
func (s *Stream) tick(n int) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if n != s.ticks {
		return
	}
	s.stopTick = nil
	for _, w := range s.notify {
		if w.idle.Swap(true) && h.doneLocked(w) {
			// If the queue is full, newer responses are ahead of it anyway.
			s.push(item{resp: &Response{WatchID: w.id, Revision: h.rev}})
		}
	}
	s.startTickLocked()
}

// awaitRoom blocks until the queue accepts a response to a request.
func (s *Stream) awaitRoom() error {
	for {
		s.mu.Lock()
		ok := s.answers < s.hub.o.ControlResponses
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-s.room:
		case <-s.done:
			return ErrClosed
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// push queues an item and reports whether there was room. Responses to requests always fit.
func (s *Stream) push(it item) bool {
	queued, asleep := s.enqueue(it)
	if asleep {
		s.rouse()
	}
	return queued
}

// rouse wakes Next.
func (s *Stream) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// enqueue is push that leaves it to the caller to wake Next: asleep reports that it must.
func (s *Stream) enqueue(it item) (queued, asleep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return true, false
	}
	if it.answer {
		s.answers++
	} else {
		// A chunk counts once for consecutive watchers of the stream that share it.
		n := len(s.queue)
		shared := it.chunk != nil && n > s.head && s.queue[n-1].chunk == it.chunk
		if !(shared && s.events < s.hub.o.QueueResponses) &&
			!s.admitsLocked(s.hub.o.QueueResponses, s.hub.o.QueueBytes) {
			s.starved = true
			return false, false
		}
		if it.chunk != nil {
			it.chunk.refs.Add(1)
		}
		if it.chunk != nil && !shared {
			it.size = it.chunk.size
		}
		s.events++
		s.bytes += it.size
	}
	if s.head > 0 && len(s.queue) == cap(s.queue) {
		n := copy(s.queue, s.queue[s.head:])
		clear(s.queue[n:])
		s.queue, s.head = s.queue[:n], 0
	}
	s.queue = append(s.queue, it)
	asleep, s.waiting = s.waiting, false
	return true, asleep
}

// admitsLocked reports whether the queue is below the given limits. An empty queue always is.
func (s *Stream) admitsLocked(responses, bytes int) bool {
	return s.events == 0 ||
		s.events < responses && s.bytes < bytes && s.hub.pending.Load() < s.hub.o.PendingBytes
}

// hasRoom reports whether the queue has drained enough to be fed from history. If not, the
// consumer wakes the hub once it has.
func (s *Stream) hasRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := s.drainedLocked()
	if !ok {
		s.starved = true
	}
	return ok
}

// drainedLocked requires half of the queue to be free, so that a scan feeds more than one
// response.
func (s *Stream) drainedLocked() bool {
	return s.admitsLocked((s.hub.o.QueueResponses+1)/2, (s.hub.o.QueueBytes+1)/2)
}

// Next returns the next response, waiting for it if necessary. It returns ErrClosed and the
// errors of the two contexts.
func (s *Stream) Next(ctx context.Context) (Response, error) {
	for {
		r, ok, err := s.take(true)
		if ok || err != nil {
			return r, err
		}
		select {
		case <-s.wake:
		case <-s.done:
		case <-ctx.Done():
			return Response{}, ctx.Err()
		case <-s.ctx.Done():
			return Response{}, s.ctx.Err()
		}
	}
}

// TryNext returns the next response if there is one.
func (s *Stream) TryNext() (Response, bool, error) { return s.take(false) }

func (s *Stream) take(wait bool) (Response, bool, error) {
	if len(s.rest.Events) > 0 {
		select {
		case <-s.done:
			return Response{}, false, ErrClosed
		default:
			return s.fragment(), true, nil
		}
	}
	it, ok, err := s.pop(wait)
	if !ok || err != nil {
		return Response{}, false, err
	}
	r := s.open(&it)
	if it.chunk != nil {
		s.hub.release(it.chunk, 1)
	}
	countSent(len(r.Events))
	if it.w != nil && it.w.fragment && s.hub.tooLarge(r.Events) {
		s.rest = r
		return s.fragment(), true, nil
	}
	return r, true, nil
}

// open returns the response of an item. The caller releases its chunk.
func (s *Stream) open(it *item) Response {
	if it.chunk == nil {
		return *it.resp
	}
	r := Response{WatchID: it.w.id, Revision: it.rev, Events: it.chunk.encode(s.hub)[it.skip:]}
	if it.w.progress {
		it.w.idle.Store(false)
	}
	return r
}

// countSent counts events that have left a queue.
func countSent(n int) {
	if n > 0 {
		metrics.DebuggingMVCCPendingEventsTotal.Sub(float64(n))
		metrics.DebuggingMVCCEventsTotal.Add(float64(n))
	}
}

// pop takes the first item. With wait set and an empty queue, the next push wakes Next.
func (s *Stream) pop(wait bool) (item, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return item{}, false, ErrClosed
	}
	if s.head == len(s.queue) {
		s.waiting = wait
		return item{}, false, nil
	}
	return s.popLocked(), true, nil
}

// popLocked takes the first item of a queue that is not empty.
func (s *Stream) popLocked() item {
	it := s.queue[s.head]
	s.queue[s.head] = item{}
	s.head++
	if s.head == len(s.queue) {
		s.head = 0
		s.queue = s.queue[:0]
		if cap(s.queue) > maxIdleQueue && cap(s.queue) > 2*int(s.watched.Load()) {
			s.queue = nil
		}
	}
	if it.answer {
		s.answers--
		select {
		case s.room <- struct{}{}:
		default:
		}
		return it
	}
	s.events--
	s.bytes -= it.size
	if s.starved && s.drainedLocked() {
		s.starved = false
		s.hub.wakeRun()
	}
	return it
}

// maxIdleQueue limits the capacity that an empty queue retains, unless its stream has many
// watchers, which may all get the next event.
const maxIdleQueue = 8

// headRoom is the maximum size of a response without its events.
const headRoom = 80

func (h *Hub) tooLarge(events [][]byte) bool {
	size := headRoom
	for _, e := range events {
		size += len(e)
	}
	return size >= h.o.FragmentBytes && len(events) > 1
}

// fragment takes the next part off rest: at least one event, and as many as stay below the
// limit.
func (s *Stream) fragment() Response {
	r := s.rest
	size, n := headRoom, 0
	for n < len(r.Events) {
		size += len(r.Events[n])
		if n > 0 && size >= s.hub.o.FragmentBytes {
			break
		}
		n++
	}
	r.Events, s.rest.Events = r.Events[:n:n], r.Events[n:]
	r.Fragment = len(s.rest.Events) > 0
	if !r.Fragment {
		s.rest = Response{}
	}
	return r
}
