package differential

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// session is one server as the script sees it. It is used by one goroutine.
type session struct {
	conn    *grpc.ClientConn
	kv      pb.KVClient
	lease   pb.LeaseClient
	watch   pb.WatchClient
	cluster pb.ClusterClient
	maint   pb.MaintenanceClient
	auth    pb.AuthClient
	health  healthpb.HealthClient

	rev     int64             // newest revision seen in an answer's header
	member  uint64            // id of the member, from an answer's header
	names   map[uint64]string // numbers drawn by the server, and their names in the script
	ids     map[string]uint64 // the same the other way round
	tokens  map[string]string // authentication tokens by user
	streams map[string]*watchStream
}

func newSession(addr string) (*session, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))
	if err != nil {
		return nil, fmt.Errorf("connect to server: %w", err)
	}
	return &session{
		conn: conn, kv: pb.NewKVClient(conn), lease: pb.NewLeaseClient(conn),
		watch: pb.NewWatchClient(conn), cluster: pb.NewClusterClient(conn),
		maint: pb.NewMaintenanceClient(conn), auth: pb.NewAuthClient(conn),
		health: healthpb.NewHealthClient(conn),
		names:  map[uint64]string{}, ids: map[string]uint64{}, tokens: map[string]string{},
		streams: map[string]*watchStream{},
	}, nil
}

func (s *session) close() {
	for _, w := range s.streams {
		w.cancel()
	}
	s.conn.Close()
}

// name makes later answers print n as the given name.
func (s *session) name(n uint64, name string) {
	s.names[n], s.ids[name] = name, n
}

// header keeps what later operations refer to.
func (s *session) header(h *pb.ResponseHeader) {
	s.rev = max(s.rev, h.GetRevision())
	if h.GetMemberId() != 0 {
		s.member = h.GetMemberId()
	}
}

// rangeStream concatenates the chunks, as a client does, and checks where the totals stand.
func (s *session) rangeStream(ctx context.Context, req *pb.RangeRequest) answer {
	st, err := s.kv.RangeStream(ctx, req)
	if err != nil {
		return failed(err)
	}
	whole := &pb.RangeResponse{}
	early := false // header, more or count before the last chunk
	pending := false
	for {
		chunk, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return failed(err)
		}
		early = early || pending
		r := chunk.GetRangeResponse()
		pending = r.GetHeader() != nil || r.GetMore() || r.GetCount() != 0
		proto.Merge(whole, r)
	}
	a := s.answerOf(whole, nil)
	a.add("totals before last chunk", "%v", early)
	return a
}

func (s *session) snapshot(ctx context.Context) answer {
	st, err := s.maint.Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		return failed(err)
	}
	var all []byte
	var a answer
	falling, last, biggest := true, uint64(0), 0
	for first := true; ; first = false {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return failed(err)
		}
		falling = falling && (first || m.GetRemainingBytes() < last || m.GetRemainingBytes() == 0)
		last = m.GetRemainingBytes()
		biggest = max(biggest, len(m.GetBlob()))
		all = append(all, m.GetBlob()...)
		if first {
			a.add("version", "%q", m.GetVersion())
		}
	}
	a.add("remaining falls to zero", "%v", falling && last == 0)
	a.add("blob within 32 KiB", "%v", biggest <= 32<<10)
	a.add("size mod 512", "%d", len(all)%512)
	if n := len(all) - sha256.Size; n > 0 {
		sum := sha256.Sum256(all[:n])
		a.add("checksum holds", "%v", string(sum[:]) == string(all[n:]))
	}
	return a
}

// keepAlive sends the ids on one stream and collects one answer each.
func (s *session) keepAlive(ctx context.Context, ids ...int64) answer {
	st, err := s.lease.LeaseKeepAlive(ctx)
	if err != nil {
		return failed(err)
	}
	var a answer
	for i, id := range ids {
		if err := st.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			return append(a, failed(err)...)
		}
		r, err := st.Recv()
		if err != nil {
			return append(a, failed(err)...)
		}
		for _, f := range s.answerOf(r, nil) {
			a = append(a, field{fmt.Sprintf("[%d].%s", i, f.path), f.value})
		}
	}
	if err := st.CloseSend(); err != nil {
		return append(a, failed(err)...)
	}
	_, err = st.Recv()
	a.add("end of stream", "%v", errors.Is(err, io.EOF))
	return a
}

// leaseAnswer compares the remaining seconds with a tolerance and the keys as a set.
func (s *session) leaseAnswer(r *pb.LeaseTimeToLiveResponse, err error) answer {
	if err != nil {
		return failed(err)
	}
	slices.SortFunc(r.Keys, slices.Compare)
	left := r.TTL
	if left > 0 {
		r.TTL = 0
	}
	a := s.answerOf(r, nil)
	if left > 0 {
		// Both servers have had a few seconds, at most, since the grant or the last renewal.
		a.add("TTL", "within 5 s of granted: %v", left <= r.GrantedTTL && left >= r.GrantedTTL-5)
	}
	return a
}

// fenceID is the watcher that every stream of the script holds beside its own: without any
// watcher a stream answers no progress request, and progress is how a drain knows its end.
const fenceID = 1 << 40

// watchStream is one Watch RPC. A goroutine collects its responses; the script asks for them.
type watchStream struct {
	stream pb.Watch_WatchClient
	cancel context.CancelFunc

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced on every arrival
	created  int           // created responses so far
	progress int64         // highest revision of a progress response of the whole stream
	ended    error
	pending  []*pb.WatchResponse // not yet drained
	canceled map[int64]bool      // ids with a cancelled response
	notified map[int64]int       // ids with a progress response of their own, and how many
}

func (s *session) openWatch(ctx context.Context, name string) answer {
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	st, err := s.watch.Watch(sctx)
	if err != nil {
		cancel()
		return failed(err)
	}
	w := newWatchStream(st, cancel)
	go w.collect()
	s.streams[name] = w
	return s.createWatch(ctx, name, &pb.WatchCreateRequest{Key: []byte("\x00fence"), WatchId: fenceID})
}

func newWatchStream(st pb.Watch_WatchClient, cancel context.CancelFunc) *watchStream {
	return &watchStream{
		stream: st, cancel: cancel, changed: make(chan struct{}),
		canceled: map[int64]bool{}, notified: map[int64]int{},
	}
}

func (w *watchStream) collect() {
	for {
		r, err := w.stream.Recv()
		w.mu.Lock()
		if err != nil {
			w.ended = err
		} else {
			w.noteLocked(r)
		}
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (w *watchStream) noteLocked(r *pb.WatchResponse) {
	plain := !r.Created && !r.Canceled && len(r.Events) == 0
	switch {
	case plain && r.WatchId == -1:
		w.progress = max(w.progress, r.Header.GetRevision())
		return
	case plain:
		w.notified[r.WatchId]++
		return
	}
	if r.Created {
		w.created++
	}
	if r.Canceled {
		w.canceled[r.WatchId] = true
	}
	w.pending = append(w.pending, r)
}

// await blocks until cond, which is called with the lock held, is true. The interval lets the
// caller act (ask for progress again); it may be nil.
func (w *watchStream) await(ctx context.Context, cond func() bool, again func()) error {
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	for {
		w.mu.Lock()
		ok, ended, changed := cond(), w.ended, w.changed
		w.mu.Unlock()
		switch {
		case ok:
			return nil
		case ended != nil:
			return ended
		}
		select {
		case <-changed:
		case <-tick.C:
			if again != nil {
				again()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *session) stream(name string) (*watchStream, error) {
	if w := s.streams[name]; w != nil {
		return w, nil
	}
	return nil, fmt.Errorf("stream %s was never opened", name)
}

func (s *session) sendWatch(name string, r *pb.WatchRequest) answer {
	w, err := s.stream(name)
	if err == nil {
		err = w.stream.Send(r)
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

// createWatch sends the request and waits for its created response, which the next drain
// reports: whatever is written after this operation is after the watcher's start.
func (s *session) createWatch(ctx context.Context, name string, req *pb.WatchCreateRequest) answer {
	w, err := s.stream(name)
	if err != nil {
		return failed(err)
	}
	w.mu.Lock()
	want := w.created + 1
	w.mu.Unlock()
	r := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}
	if err := w.stream.Send(r); err != nil {
		return failed(err)
	}
	if err := w.await(ctx, func() bool { return w.created >= want }, nil); err != nil {
		return failed(err)
	}
	return nil
}

// drain waits until the server vouches for every event up to the newest revision and returns
// what came since the last drain: per watcher the control responses and the concatenated events.
func (s *session) drain(ctx context.Context, name string) answer {
	w, err := s.stream(name)
	if err != nil {
		return failed(err)
	}
	ask := func() {
		_ = w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{
			ProgressRequest: &pb.WatchProgressRequest{}}}) // a broken stream shows in await
	}
	w.mu.Lock()
	w.progress = 0
	w.mu.Unlock()
	ask()
	err = w.await(ctx, func() bool { return w.progress >= s.rev }, ask)
	w.mu.Lock()
	pending := w.pending
	w.pending = nil
	w.mu.Unlock()
	a := s.watchAnswer(pending)
	if err != nil {
		a = append(a, failed(err)...)
	}
	return a
}

func (s *session) watchAnswer(responses []*pb.WatchResponse) answer {
	type log struct {
		control, events []string
		torn, split     int   // revisions spread over responses; fragments
		last            int64 // mod_revision of the last event of the last response
		fragment        bool  // of the last response
	}
	logs := map[int64]*log{}
	for _, r := range responses {
		if r.WatchId == fenceID {
			continue
		}
		l := logs[r.WatchId]
		if l == nil {
			l = &log{}
			logs[r.WatchId] = l
		}
		if r.Created || r.Canceled {
			l.control = append(l.control, fmt.Sprintf(
				"created=%v canceled=%v compact_revision=%d reason=%q revision=%d member=%d",
				r.Created, r.Canceled, r.CompactRevision, r.CancelReason, r.Header.GetRevision(), r.Header.GetMemberId()))
		}
		if len(r.Events) == 0 {
			continue
		}
		if r.Fragment || l.fragment {
			l.split++
		}
		if !l.fragment && r.Events[0].Kv.ModRevision == l.last {
			l.torn++
		}
		for _, e := range r.Events {
			l.events = append(l.events, eventText(e))
		}
		l.last, l.fragment = r.Events[len(r.Events)-1].Kv.ModRevision, r.Fragment
	}
	var a answer
	for _, id := range slices.Sorted(maps.Keys(logs)) {
		l, prefix := logs[id], fmt.Sprintf("watcher %d ", id)
		for i, c := range l.control {
			a.add(fmt.Sprintf("%scontrol[%d]", prefix, i), "%s", c)
		}
		a.add(prefix+"events.len", "%d", len(l.events))
		for i, e := range l.events {
			a.add(fmt.Sprintf("%sevent[%d]", prefix, i), "%s", e)
		}
		a.add(prefix+"torn revisions", "%d", l.torn)
		a.add(prefix+"fragmented", "%v", l.split > 0)
		a.add(prefix+"open fragment", "%v", l.fragment)
	}
	return a
}

func eventText(e *mvccpb.Event) string {
	t := fmt.Sprintf("%s %s", e.Type, kvText(e.Kv))
	if e.PrevKv != nil {
		t += " prev " + kvText(e.PrevKv)
	}
	return t
}

func kvText(kv *mvccpb.KeyValue) string {
	return fmt.Sprintf("{%s=%s create=%d mod=%d version=%d lease=%d}",
		quote(kv.GetKey()), quote(kv.GetValue()), kv.GetCreateRevision(), kv.GetModRevision(), kv.GetVersion(), kv.GetLease())
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
