package grpcproxy

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"quorate/internal/clock"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// queueResponses is etcd's limit on pending responses for one client, queueBytes bounds
	// their memory.
	queueResponses = 1024
	queueBytes     = 64 << 20

	// queuePatience is how long a full queue may block the group that feeds it.
	queuePatience = 50 * time.Millisecond

	// fragmentBytes is the size above which events are fragmented for a client that asks
	// for it: what a member sends by default.
	fragmentBytes = 1536<<10 + 512<<10

	// A member's reasons for rejecting a create request.
	reasonEmptyRange  = "mvcc: watcher range is empty"
	reasonDuplicateID = "mvcc: duplicate watch ID provided on the WatchStream"
)

var (
	// Clients retry after either, and continue where they were.
	errSlow = status.Error(codes.Unavailable, "grpc-proxy: the client reads its watches too slowly")
	errLost = status.Error(codes.Unavailable, "grpc-proxy: the watch has lost its member")
)

type watchServer struct {
	pb.UnimplementedWatchServer
	hub *hub
	kv  clientv3.KV // to check whether a watcher may read
}

// watchStream is one stream of a client. One goroutine receives, the goroutine of the call
// sends, and the pumps of the hub fill the queue.
type watchStream struct {
	hub    *hub
	kv     clientv3.KV
	caller caller
	ctx    context.Context
	cancel context.CancelCauseFunc

	filled chan struct{} // wakes up the sender; capacity 1
	room   chan struct{} // wakes up pumps that wait for room; capacity 1

	mu       sync.Mutex
	watchers map[int64]*watcher    // nil after the end
	awaited  map[*watcher]struct{} // watchers whose progress the client's request still waits for; nil: no request
	reached  *pb.ResponseHeader    // the lowest revision that one of them has reached, nil: none yet
	nextID   int64
	queue    []queued
	bytes    int
}

type queued struct {
	resp     *pb.WatchResponse
	size     int
	fragment bool
}

// Watch serves a stream until either side ends it.
func (s *watchServer) Watch(client grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	return newWatchStream(client.Context(), s.hub, s.kv).run(client)
}

// watchClient is the client's side of a stream.
type watchClient interface {
	Recv() (*pb.WatchRequest, error)
	Send(*pb.WatchResponse) error
}

// run returns as soon as the stream has ended. A client that does not read blocks the
// sender until then; that goroutine and the receiver return a moment later.
func (s *watchStream) run(client watchClient) error {
	defer s.close()
	go func() {
		if err := s.receive(client); err != nil {
			s.cancel(err)
		}
	}()
	go func() { s.cancel(s.send(client)) }()
	<-s.ctx.Done()
	return context.Cause(s.ctx)
}

func newWatchStream(ctx context.Context, h *hub, kv clientv3.KV) *watchStream {
	s := &watchStream{hub: h, kv: kv, caller: callerOf(ctx), watchers: map[int64]*watcher{},
		filled: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

func (s *watchStream) close() {
	s.cancel(nil)
	s.mu.Lock()
	ws := s.watchers
	s.watchers, s.queue, s.awaited = nil, nil, nil
	s.mu.Unlock()
	for _, w := range ws {
		s.hub.leave(w)
	}
}

// end ends the stream. Queued responses are not sent any more.
func (s *watchStream) end(err error) { s.cancel(err) }

func (s *watchStream) receive(client watchClient) error {
	for {
		r, err := client.Recv()
		if errors.Is(err, io.EOF) {
			return nil // the client only listens from now on
		}
		if err != nil {
			return err
		}
		// Nothing else bounds the replies to requests.
		if !s.waitForRoom(nil) {
			return nil
		}
		switch {
		case r.GetCreateRequest() != nil:
			s.create(r.GetCreateRequest())
		case r.GetCancelRequest() != nil:
			s.cancelWatcher(r.GetCancelRequest().WatchId)
		case r.GetProgressRequest() != nil:
			s.requestProgress()
		}
	}
}

// requestProgress has the members report the progress of the watches that carry this
// client's watchers. The client gets one answer, with the lowest of their revisions: it has
// received everything up to there. A request made while another one is pending asks the
// members again and shares its answer.
func (s *watchStream) requestProgress() {
	s.mu.Lock()
	if len(s.watchers) == 0 {
		s.mu.Unlock()
		s.progressOfNothing()
		return
	}
	if s.awaited == nil {
		s.awaited, s.reached = make(map[*watcher]struct{}, len(s.watchers)), nil
		for _, w := range s.watchers {
			s.awaited[w] = struct{}{}
		}
	}
	s.mu.Unlock()
	s.askProgress()
}

// askProgress asks the members, with the metadata of the watches.
func (s *watchStream) askProgress() {
	ctx, cancel := context.WithCancel(s.caller.as(s.hub.ctx))
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	_ = s.hub.up.RequestProgress(ctx) // without a member there is no answer, as on a direct stream
}

// askAgain asks the members again if w is awaited: the watch that carries it now may not
// have existed when they were asked.
func (s *watchStream) askAgain(w *watcher) {
	s.mu.Lock()
	_, awaited := s.awaited[w]
	s.mu.Unlock()
	if awaited {
		s.askProgress()
	}
}

// progressOfNothing answers a client without watchers.
func (s *watchStream) progressOfNothing() {
	r, err := s.kv.Do(s.caller.as(s.ctx), rangeOp(&pb.RangeRequest{Key: []byte{0}, Serializable: true, CountOnly: true, Limit: 1}))
	if err == nil && r.Get() != nil {
		s.reply(&pb.WatchResponse{Header: r.Get().Header, WatchId: clientv3.InvalidWatchID})
	}
}

// progressed records that w has been sent everything up to the header's revision.
func (s *watchStream) progressed(w *watcher, header *pb.ResponseHeader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.awaited[w]; !ok {
		return
	}
	if s.reached == nil || header.GetRevision() < s.reached.GetRevision() {
		s.reached = header
	}
	s.notAwaited(w)
}

// notAwaited answers the progress request if w was the last watcher that it waited for.
// s.mu must be held.
func (s *watchStream) notAwaited(w *watcher) {
	delete(s.awaited, w)
	if s.awaited == nil || len(s.awaited) > 0 {
		return
	}
	s.awaited = nil
	if s.reached != nil {
		s.enqueue(&pb.WatchResponse{Header: s.reached, WatchId: clientv3.InvalidWatchID}, false)
	}
}

// refusal is the reply to a create request that fails.
func refusal(header *pb.ResponseHeader, reason string) *pb.WatchResponse {
	if header == nil {
		header = &pb.ResponseHeader{}
	}
	return &pb.WatchResponse{Header: header, WatchId: clientv3.InvalidWatchID, Created: true, Canceled: true, CancelReason: reason}
}

func (s *watchStream) create(r *pb.WatchCreateRequest) {
	if reason := s.objection(r); reason != "" {
		s.reply(refusal(nil, reason))
		return
	}
	w := &watcher{
		stream: s, id: r.WatchId, of: watched{span{string(r.Key), string(r.RangeEnd)}, s.caller}, start: r.StartRevision,
		filters: r.Filters, progress: r.ProgressNotify, prevKV: r.PrevKv, fragment: r.Fragment,
	}
	if !s.add(w) {
		s.reply(refusal(nil, reasonDuplicateID))
		return
	}
	if err := s.hub.join(w); err != nil {
		s.canceled(w, refusal(nil, rpctypes.ErrorDesc(err)))
		return
	}
	s.mu.Lock()
	gone := s.watchers == nil
	s.mu.Unlock()
	if gone {
		s.hub.leave(w) // close has not seen it
	}
	s.askAgain(w)
}

// objection returns why a watcher must not be created, "" if it may be tried.
func (s *watchStream) objection(r *pb.WatchCreateRequest) string {
	if r.StartRevision < 0 {
		return rpctypes.ErrCompacted.Error()
	}
	key, end := r.Key, r.RangeEnd
	if len(end) > 0 && string(end) != "\x00" && string(end) <= string(key) {
		return reasonEmptyRange
	}
	if len(key) == 0 {
		key = []byte{0}
	}
	// An existing group may have been opened under other permissions.
	ctx := s.caller.as(s.ctx)
	_, err := s.kv.Do(ctx, rangeOp(&pb.RangeRequest{Key: key, RangeEnd: end, Serializable: true, CountOnly: true, Limit: 1}))
	if err != nil && isAuthError(err) {
		return rpctypes.ErrorDesc(err)
	}
	return "" // if no member can be asked, the watch waits for one
}

// add assigns w its id: the requested one, or the next free one.
func (s *watchStream) add(w *watcher) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers == nil {
		return true // nothing is sent any more
	}
	if w.id == clientv3.AutoWatchID {
		for s.watchers[s.nextID] != nil {
			s.nextID++
		}
		w.id = s.nextID
		s.nextID++
	} else if s.watchers[w.id] != nil {
		return false
	}
	s.watchers[w.id] = w
	if s.awaited != nil {
		s.awaited[w] = struct{}{}
	}
	return true
}

// cancelWatcher cancels a watcher for its client. Nothing is sent for it after the reply.
func (s *watchStream) cancelWatcher(id int64) {
	s.mu.Lock()
	w := s.watchers[id]
	if w != nil {
		header := w.header
		if header == nil {
			header = &pb.ResponseHeader{}
		}
		delete(s.watchers, id)
		s.enqueue(&pb.WatchResponse{Header: header, WatchId: id, Canceled: true}, false)
		s.notAwaited(w)
	}
	s.mu.Unlock()
	if w != nil {
		s.hub.leave(w)
	}
}

// created replies to the create request of a watcher that joins others.
func (s *watchStream) created(w *watcher, header *pb.ResponseHeader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers[w.id] == w {
		w.header = header
		s.enqueue(&pb.WatchResponse{Header: header, WatchId: w.id, Created: true}, false)
	}
}

// canceled removes w, which no group feeds, with a last response.
func (s *watchStream) canceled(w *watcher, last *pb.WatchResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers[w.id] == w {
		delete(s.watchers, w.id)
		s.enqueue(last, false)
		s.notAwaited(w)
	}
}

func (s *watchStream) reply(r *pb.WatchResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueue(r, false)
}

// push queues a response for w. It waits for room for up to queuePatience, then ends the
// stream.
func (s *watchStream) push(w *watcher, r *pb.WatchResponse) {
	if !s.full() || s.waitForRoom(clock.After(queuePatience)) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.watchers[w.id] == w {
			w.header = r.Header
			s.enqueue(r, w.fragment)
		}
		return
	}
	s.end(errSlow)
}

// enqueue queues r even if the queue is full. s.mu must be held.
func (s *watchStream) enqueue(r *pb.WatchResponse, fragment bool) {
	if s.watchers == nil {
		return
	}
	q := queued{r, proto.Size(r), fragment}
	s.queue = append(s.queue, q)
	s.bytes += q.size
	select {
	case s.filled <- struct{}{}:
	default:
	}
}

func (s *watchStream) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) >= queueResponses || s.bytes >= queueBytes
}

// waitForRoom returns false if the stream ends or patience runs out first; a nil patience
// never does.
func (s *watchStream) waitForRoom(patience <-chan time.Time) bool {
	for s.full() {
		select {
		case <-s.room:
		case <-patience:
			return false
		case <-s.ctx.Done():
			return false
		}
	}
	select {
	case s.room <- struct{}{}: // others may be waiting, too
	default:
	}
	return true
}

func (s *watchStream) send(client watchClient) error {
	for {
		s.mu.Lock()
		var q queued
		if len(s.queue) > 0 {
			q = s.queue[0]
			s.queue[0] = queued{}
			s.queue = s.queue[1:]
			s.bytes -= q.size
		}
		s.mu.Unlock()
		if q.resp == nil {
			select {
			case <-s.filled:
				continue
			case <-s.ctx.Done():
				return context.Cause(s.ctx)
			}
		}
		select {
		case s.room <- struct{}{}:
		default:
		}
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		for _, r := range q.pieces() {
			if err := client.Send(r); err != nil {
				return err
			}
		}
	}
}

// pieces fragments a response for a client that asked for it. Each fragment has at least
// one event.
func (q queued) pieces() []*pb.WatchResponse {
	if !q.fragment || q.size < fragmentBytes || len(q.resp.Events) < 2 {
		return []*pb.WatchResponse{q.resp}
	}
	var out []*pb.WatchResponse
	begin, size := 0, 0
	cut := func(end int) {
		out = append(out, &pb.WatchResponse{Header: q.resp.Header, WatchId: q.resp.WatchId,
			Events: q.resp.Events[begin:end], Fragment: end < len(q.resp.Events)})
		begin, size = end, 0
	}
	for i, e := range q.resp.Events {
		n := proto.Size(e)
		if i > begin && size+n >= fragmentBytes {
			cut(i)
		}
		size += n
	}
	cut(len(q.resp.Events))
	return out
}
