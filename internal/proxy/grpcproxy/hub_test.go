package grpcproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every step on a busy machine.
const patience = 30 * time.Second

// member opens watches that the test feeds.
type member struct {
	opened chan *opened
	asked  chan context.Context // for progress
}

type opened struct {
	ctx   context.Context
	key   string
	rev   int64
	token string
	out   chan clientv3.WatchResponse
}

func (m *member) RequestProgress(ctx context.Context) error {
	m.asked <- ctx
	return nil
}

func (m *member) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	md, _ := metadata.FromOutgoingContext(ctx)
	o := &opened{ctx: ctx, key: key, rev: clientv3.OpGet(key, opts...).Rev(), token: first(md, rpctypes.TokenFieldNameGRPC),
		out: make(chan clientv3.WatchResponse)}
	m.opened <- o
	through := make(chan clientv3.WatchResponse)
	go func() {
		defer close(through)
		for {
			select {
			case r, ok := <-o.out:
				if !ok {
					return
				}
				select {
				case through <- r:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return through
}

func (o *opened) send(t *testing.T, r clientv3.WatchResponse) {
	t.Helper()
	select {
	case o.out <- r:
	case <-o.ctx.Done():
		t.Fatal("the watch has ended")
	case <-time.After(patience):
		t.Fatal("nobody takes a response of the member")
	}
}

func (o *opened) expectEnd(t *testing.T) {
	t.Helper()
	select {
	case <-o.ctx.Done():
	case <-time.After(patience):
		t.Fatal("the watch of the member goes on")
	}
}

func head(rev int64) *pb.ResponseHeader { return &pb.ResponseHeader{ClusterId: 7, Revision: rev} }

func createdAt(rev int64) clientv3.WatchResponse {
	return clientv3.WatchResponse{Header: head(rev), Created: true}
}

// put is a response with an event of each revision, in a store that is at rev.
func puts(rev int64, revs ...int64) clientv3.WatchResponse {
	r := clientv3.WatchResponse{Header: head(rev)}
	for _, n := range revs {
		r.Events = append(r.Events, &clientv3.Event{Type: mvccpb.PUT, Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: n}, PrevKv: &mvccpb.KeyValue{Key: []byte("k")}})
	}
	return r
}

// reader answers the permission reads that members would; err is the answer.
type reader struct {
	clientv3.KV
	mu  sync.Mutex
	err error
}

func (r *reader) Do(context.Context, clientv3.Op) (clientv3.OpResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return clientv3.OpResponse{}, r.err
}

// bench is a hub with its member.
type bench struct {
	t *testing.T
	*member
	hub  *hub
	kv   *reader
	stop context.CancelFunc
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, member: &member{make(chan *opened, 100), make(chan context.Context, 100)}, kv: &reader{}}
	ctx, stop := context.WithCancel(context.Background())
	b.stop = stop
	b.hub = newHub(ctx, b.member, zap.NewNop())
	t.Cleanup(func() {
		stop()
		b.hub.wait()
		if len(b.hub.groups) != 0 || b.hub.memory != 0 {
			t.Errorf("left in the hub: %d ranges, %d bytes", len(b.hub.groups), b.hub.memory)
		}
	})
	return b
}

// open returns the next watch that the member was asked for.
func (b *bench) open() *opened {
	b.t.Helper()
	select {
	case o := <-b.opened:
		return o
	case <-time.After(patience):
		b.t.Fatal("the member was not asked")
		return nil
	}
}

func (b *bench) expectNoOpen() {
	b.t.Helper()
	select {
	case o := <-b.opened:
		b.t.Fatalf("the member was asked for %q from %d", o.key, o.rev)
	default:
	}
}

// client is the client's side of a stream.
type client struct {
	b    *bench
	in   chan *pb.WatchRequest
	out  chan *pb.WatchResponse
	done chan error // receives the end of the call
	s    *watchStream
	gone context.Context // ends when the call has ended, or the client
	end  context.CancelFunc
}

func (c *client) Recv() (*pb.WatchRequest, error) {
	select {
	case r, ok := <-c.in:
		if !ok {
			return nil, io.EOF
		}
		return r, nil
	case <-c.gone.Done():
		return nil, c.gone.Err()
	}
}

func (c *client) Send(r *pb.WatchResponse) error {
	// As on the wire: shared messages are not touched.
	if _, err := proto.Marshal(r); err != nil {
		return err
	}
	select {
	case c.out <- r:
		return nil
	case <-c.gone.Done():
		return c.gone.Err()
	}
}

func (b *bench) connect(md ...string) *client {
	ctx, end := context.WithCancel(metadata.NewIncomingContext(context.Background(), metadata.Pairs(md...)))
	c := &client{b: b, in: make(chan *pb.WatchRequest), out: make(chan *pb.WatchResponse), done: make(chan error, 1), gone: ctx, end: end}
	c.s = newWatchStream(ctx, b.hub, b.kv)
	go func() {
		err := c.s.run(c)
		end() // as the server does with the context of an ended call
		c.done <- err
	}()
	b.t.Cleanup(func() {
		end()
		select {
		case <-c.done:
		case <-time.After(patience):
			b.t.Error("the stream does not end")
		}
	})
	return c
}

func (c *client) request(r *pb.WatchRequest) {
	c.b.t.Helper()
	select {
	case c.in <- r:
	case <-time.After(patience):
		c.b.t.Fatal("nobody takes a request")
	}
}

func (c *client) create(r *pb.WatchCreateRequest) {
	c.b.t.Helper()
	if r.Key == nil {
		r.Key = []byte("k")
	}
	c.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
}

func (c *client) cancel(id int64) {
	c.b.t.Helper()
	c.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

// expect compares the next responses, as text.
func (c *client) expect(want ...string) {
	c.b.t.Helper()
	for _, w := range want {
		select {
		case r := <-c.out:
			if got := line(r); got != w {
				c.b.t.Fatalf("got  %s\nwant %s", got, w)
			}
		case err := <-c.done:
			c.done <- err
			c.b.t.Fatalf("the stream has ended: %v; want %s", err, w)
		case <-time.After(patience):
			c.b.t.Fatalf("nothing comes; want %s", w)
		}
	}
}

func (c *client) expectEnd(want error) {
	c.b.t.Helper()
	select {
	case err := <-c.done:
		c.done <- err
		if !errors.Is(err, want) {
			c.b.t.Fatalf("the stream ends with %v, want %v", err, want)
		}
	case <-time.After(patience):
		c.b.t.Fatal("the stream does not end")
	}
}

func line(r *pb.WatchResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "w%d rev=%d", r.WatchId, r.Header.GetRevision())
	for flag, on := range map[string]bool{" created": r.Created, " fragment": r.Fragment} {
		if on {
			b.WriteString(flag)
		}
	}
	if r.Canceled {
		fmt.Fprintf(&b, " canceled compacted=%d %q", r.CompactRevision, r.CancelReason)
	}
	for _, e := range r.Events {
		fmt.Fprintf(&b, " %s@%d", e.Type, e.Kv.ModRevision)
		if e.PrevKv != nil {
			b.WriteString("+prev")
		}
	}
	return b.String()
}

// Watchers that begin at the group's revision, or later, join it and get the events from
// their start; one that begins earlier has a watch of its own until it has caught up.
func TestWatchersShare(t *testing.T) {
	b := newBench(t)
	c := b.connect()
	c.create(&pb.WatchCreateRequest{StartRevision: 5})
	up := b.open()
	if up.key != "k" || up.rev != 5 {
		t.Fatalf("asked for %q from %d", up.key, up.rev)
	}
	c.create(&pb.WatchCreateRequest{StartRevision: 6, PrevKv: true}) // the first reply is still to come
	c.create(&pb.WatchCreateRequest{StartRevision: -1})              // refused, so the previous one has been processed
	c.expect(`w-1 rev=0 created canceled compacted=0 "etcdserver: mvcc: required revision has been compacted"`)
	up.send(t, createdAt(9))
	c.expect("w0 rev=9 created", "w1 rev=9 created")
	up.send(t, puts(9, 5, 6, 6))
	c.expect("w0 rev=9 PUT@5 PUT@6 PUT@6", "w1 rev=9 PUT@6+prev PUT@6+prev")

	d := b.connect()
	d.create(&pb.WatchCreateRequest{StartRevision: 7})
	d.expect("w0 rev=9 created")
	d.create(&pb.WatchCreateRequest{StartRevision: 12})
	d.expect("w1 rev=9 created")
	b.expectNoOpen()
	up.send(t, puts(12, 10, 12))
	c.expect("w0 rev=12 PUT@10 PUT@12", "w1 rev=12 PUT@10+prev PUT@12+prev")
	d.expect("w0 rev=12 PUT@10 PUT@12", "w1 rev=12 PUT@12")

	// One revision behind is behind.
	e := b.connect()
	e.create(&pb.WatchCreateRequest{StartRevision: 12})
	late := b.open()
	late.send(t, createdAt(12))
	e.expect("w0 rev=12 created")
	late.send(t, puts(12, 12))
	e.expect("w0 rev=12 PUT@12")
	late.expectEnd(t)
	e.end()
	e.expectEnd(context.Canceled)

	// Behind the group: a watch of its own, which ends once it has caught up.
	d.create(&pb.WatchCreateRequest{StartRevision: 6})
	own := b.open()
	own.send(t, createdAt(12))
	d.expect("w2 rev=12 created")
	own.send(t, puts(12, 6, 6)) // the response is not complete: the header has the revision of the store, not of this watch
	d.expect("w2 rev=12 PUT@6 PUT@6")
	if own.ctx.Err() != nil {
		t.Fatal("merged before it had caught up")
	}
	own.send(t, puts(12, 10, 12))
	d.expect("w2 rev=12 PUT@10 PUT@12")
	own.expectEnd(t)
	up.send(t, puts(13, 13))
	c.expect("w0 rev=13 PUT@13", "w1 rev=13 PUT@13+prev")
	for range 3 { // in any order
		select {
		case r := <-d.out:
			if len(r.Events) != 1 || r.Events[0].Kv.ModRevision != 13 {
				t.Fatal(line(r))
			}
		case <-time.After(patience):
			t.Fatal("a watcher that has moved gets nothing")
		}
	}
}

// A group that is ahead moves to one that is behind, and no event is delivered twice.
func TestMergeIntoOneBehind(t *testing.T) {
	b := newBench(t)
	c, d := b.connect(), b.connect()
	c.create(&pb.WatchCreateRequest{})
	behind := b.open()
	behind.send(t, createdAt(3))
	c.expect("w0 rev=3 created")
	d.create(&pb.WatchCreateRequest{}) // one from the current revision on does not know that revision: a watch of its own
	ahead := b.open()
	ahead.send(t, createdAt(5))
	d.expect("w0 rev=5 created")
	ahead.expectEnd(t)
	behind.send(t, puts(6, 4, 5, 6))
	c.expect("w0 rev=6 PUT@4 PUT@5 PUT@6")
	d.expect("w0 rev=6 PUT@6")
}

func TestProgressAndFilters(t *testing.T) {
	b := newBench(t)
	c := b.connect()
	c.create(&pb.WatchCreateRequest{StartRevision: 2, ProgressNotify: true, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	up := b.open()
	up.send(t, createdAt(1))
	c.expect("w0 rev=1 created")
	c.create(&pb.WatchCreateRequest{StartRevision: 2, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}})
	c.expect("w1 rev=1 created")
	r := puts(4, 2, 3, 4)
	r.Events[1].Type = mvccpb.DELETE
	up.send(t, r)
	c.expect("w0 rev=4 DELETE@3", "w1 rev=4 PUT@2 PUT@4")
	up.send(t, clientv3.WatchResponse{Header: head(8)}) // progress
	c.expect("w0 rev=8")
	c.create(&pb.WatchCreateRequest{StartRevision: 9}) // the progress notification confirms 8
	c.expect("w2 rev=8 created")
	up.send(t, puts(9, 9)) // nothing of it is left for w0
	c.expect("w1 rev=9 PUT@9", "w2 rev=9 PUT@9")
	b.expectNoOpen()
}

func TestCallersDoNotShare(t *testing.T) {
	b := newBench(t)
	for _, token := range []string{"alice", "bob"} {
		c := b.connect(rpctypes.TokenFieldNameGRPC, token)
		c.create(&pb.WatchCreateRequest{StartRevision: 1})
		up := b.open()
		if up.token != token {
			t.Errorf("asked with token %q, want %q", up.token, token)
		}
		up.send(t, createdAt(1))
		c.expect("w0 rev=1 created")
	}
	// A permission that was revoked is missed even though the group exists.
	b.kv.mu.Lock()
	b.kv.err = rpctypes.ErrPermissionDenied
	b.kv.mu.Unlock()
	c := b.connect(rpctypes.TokenFieldNameGRPC, "bob")
	c.create(&pb.WatchCreateRequest{StartRevision: 5})
	c.expect(`w-1 rev=0 created canceled compacted=0 "etcdserver: permission denied"`)
	b.expectNoOpen()
}

func TestIDs(t *testing.T) {
	b := newBench(t)
	c := b.connect()
	c.create(&pb.WatchCreateRequest{StartRevision: 1, WatchId: 1})
	up := b.open()
	up.send(t, createdAt(1))
	c.expect("w1 rev=1 created")
	for _, want := range []string{"w0", "w2"} {
		c.create(&pb.WatchCreateRequest{StartRevision: 1})
		c.expect(want + " rev=1 created")
	}
	c.create(&pb.WatchCreateRequest{StartRevision: 1, WatchId: 2})
	c.expect(`w-1 rev=0 created canceled compacted=0 "mvcc: duplicate watch ID provided on the WatchStream"`)
	c.create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")})
	c.expect(`w-1 rev=0 created canceled compacted=0 "mvcc: watcher range is empty"`)

	c.cancel(7) // nobody
	c.cancel(0)
	c.expect(`w0 rev=1 canceled compacted=0 ""`)
	up.send(t, puts(2, 2))
	c.expect("w1 rev=2 PUT@2", "w2 rev=2 PUT@2")
	c.cancel(1)
	c.expect(`w1 rev=2 canceled compacted=0 ""`)
	c.cancel(2)
	c.expect(`w2 rev=2 canceled compacted=0 ""`)
	up.expectEnd(t)
}

// The member's reason for ending the watch reaches all watchers that share it.
func TestEnds(t *testing.T) {
	b := newBench(t)
	compacted := clientv3.WatchResponse{Header: head(9), Canceled: true, CompactRevision: 8}
	for name, tc := range map[string]struct {
		begun bool
		end   clientv3.WatchResponse
		want  string
	}{
		"compacted":            {true, compacted, `w0 rev=9 canceled compacted=8 ""`},
		"reason":               {true, clientv3.WatchResponse{Header: head(9), Canceled: true, CancelReason: "why"}, `w0 rev=9 canceled compacted=0 "why"`},
		"no reason":            {true, clientv3.WatchResponse{Header: head(9), Canceled: true}, `w0 rev=9 canceled compacted=0 ""`},
		"refused":              {false, clientv3.WatchResponse{Header: head(0), Canceled: true, CancelReason: "why"}, `w-1 rev=0 created canceled compacted=0 "why"`},
		"compacted from start": {false, compacted, `w0 rev=9 canceled compacted=8 ""`},
	} {
		t.Run(name, func(t *testing.T) {
			c, d := b.connect(), b.connect()
			c.create(&pb.WatchCreateRequest{StartRevision: 3})
			up := b.open()
			if tc.begun {
				up.send(t, createdAt(9))
				c.expect("w0 rev=9 created")
				d.create(&pb.WatchCreateRequest{StartRevision: 3})
				d.expect("w0 rev=9 created")
			}
			up.send(t, tc.end)
			c.expect(tc.want)
			if tc.begun {
				d.expect(tc.want)
			}
			up.expectEnd(t)
			// The stream continues, and so may others of the same keys.
			c.create(&pb.WatchCreateRequest{StartRevision: 3})
			up = b.open()
			up.send(t, createdAt(9))
			c.expect("w1 rev=9 created")
			c.end()
			up.expectEnd(t)
		})
	}
}

func TestStreamsEnd(t *testing.T) {
	b := newBench(t)
	c := b.connect(rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	c.create(&pb.WatchCreateRequest{})
	up := b.open()
	up.send(t, createdAt(1))
	c.expect("w0 rev=1 created")
	up.send(t, clientv3.WatchResponse{Header: head(0), Canceled: true, CancelReason: rpctypes.ErrNoLeader.Error()})
	c.expectEnd(rpctypes.ErrGRPCNoLeader)

	c = b.connect()
	c.create(&pb.WatchCreateRequest{})
	up = b.open()
	up.send(t, createdAt(1))
	c.expect("w0 rev=1 created")
	close(up.out)
	c.expectEnd(errLost)

	c = b.connect()
	c.create(&pb.WatchCreateRequest{})
	up = b.open()
	c.end()
	c.expectEnd(context.Canceled)
	up.expectEnd(t)

	c = b.connect()
	close(c.in) // a client that only listens is still a client
	c.b.expectNoOpen()

	c = b.connect()
	c.create(&pb.WatchCreateRequest{})
	b.open()
	b.stop()
	c.expectEnd(errStopped)
	if err := b.hub.join(&watcher{}); !errors.Is(err, errStopped) {
		t.Errorf("join after the end: %v", err)
	}
}

// A client that does not read loses its stream; the others lose nothing.
func TestSlowClient(t *testing.T) {
	b := newBench(t)
	slow, good := b.connect(), b.connect()
	slow.create(&pb.WatchCreateRequest{StartRevision: 1})
	up := b.open()
	up.send(t, createdAt(1))
	slow.expect("w0 rev=1 created")
	good.create(&pb.WatchCreateRequest{StartRevision: 1})
	good.expect("w0 rev=1 created")
	for rev := int64(2); rev < queueResponses+10; rev++ {
		up.send(t, puts(rev, rev))
		good.expect(fmt.Sprintf("w0 rev=%d PUT@%d", rev, rev))
	}
	slow.expectEnd(errSlow)
	up.send(t, puts(5000, 5000))
	good.expect("w0 rev=5000 PUT@5000")
	if n := len(slow.s.queue); n != 0 {
		t.Errorf("%d responses are kept for nobody", n)
	}
}

// Events in flight when a watcher is cancelled are not sent after the reply.
func TestNothingAfterCancel(t *testing.T) {
	b := newBench(t)
	s := newWatchStream(t.Context(), b.hub, b.kv)
	defer s.close()
	w := &watcher{stream: s}
	s.add(w)
	s.cancelWatcher(w.id)
	w.feed(puts(3, 3))
	if n := len(s.queue); n != 1 || !s.queue[0].resp.Canceled {
		t.Errorf("%d responses after a cancel", n)
	}
}

// A queue is also full by its bytes.
func TestQueueBytes(t *testing.T) {
	b := newBench(t)
	s := newWatchStream(t.Context(), b.hub, b.kv)
	defer s.close()
	large := puts(1, 1)
	large.Events[0].Kv.Value = make([]byte, queueBytes/4)
	for i := range 4 {
		if s.full() {
			t.Fatalf("full after %d responses", i)
		}
		s.reply(&pb.WatchResponse{Events: large.Events})
	}
	if !s.full() || s.waitForRoom(time.After(0)) {
		t.Error("not full")
	}
}

func TestTooManyWatchers(t *testing.T) {
	b := newBench(t)
	b.hub.memory = maxWatchers - watcherCost
	c := b.connect()
	c.create(&pb.WatchCreateRequest{})
	c.expect(`w-1 rev=0 created canceled compacted=0 "etcdserver: too many requests"`)
	b.expectNoOpen()
	b.hub.memory = 0
}

func TestPieces(t *testing.T) {
	r := &pb.WatchResponse{Header: head(9), WatchId: 4, Events: puts(9, 1, 2, 3, 4, 5).Events}
	for i := range r.Events {
		r.Events[i].Kv.Value = make([]byte, fragmentBytes/2-100)
	}
	r.Events[3].Kv.Value = make([]byte, 2*fragmentBytes)
	q := queued{r, proto.Size(r), true}
	var got []string
	for _, p := range q.pieces() {
		got = append(got, strings.ReplaceAll(line(p), "+prev", ""))
	}
	want := "w4 rev=9 fragment PUT@1 PUT@2|w4 rev=9 fragment PUT@3|w4 rev=9 fragment PUT@4|w4 rev=9 PUT@5"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	q.fragment = false
	if n := len(q.pieces()); n != 1 {
		t.Errorf("%d pieces for a client that wants one", n)
	}
}

func (c *client) requestProgress() context.Context {
	c.b.t.Helper()
	c.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	return get(c.b.t, c.b.asked)
}

func progressAt(rev int64) clientv3.WatchResponse { return clientv3.WatchResponse{Header: head(rev)} }

// A request for progress is answered once, when every watch that carries one of the
// client's watchers has reported its progress, with the lowest of these revisions and after
// the events up to there.
func TestProgressRequest(t *testing.T) {
	b := newBench(t)
	c := b.connect(rpctypes.TokenFieldNameGRPC, "alice")
	c.create(&pb.WatchCreateRequest{WatchId: 1})
	one := b.open()
	one.send(t, createdAt(5))
	c.expect("w1 rev=5 created")
	c.create(&pb.WatchCreateRequest{WatchId: 2, Key: []byte("other")})
	two := b.open()
	two.send(t, createdAt(5))
	c.expect("w2 rev=5 created")

	if md, _ := metadata.FromOutgoingContext(c.requestProgress()); first(md, rpctypes.TokenFieldNameGRPC) != "alice" || len(md) != 1 {
		t.Errorf("members are asked with %v; the watches were opened with the token alone", md)
	}
	one.send(t, progressAt(10))
	one.send(t, puts(12, 12))
	c.expect("w1 rev=12 PUT@12")
	two.send(t, puts(11, 11))
	two.send(t, progressAt(12))
	c.expect("w2 rev=11 PUT@11", "w-1 rev=10")

	// A watcher that is created, or cancelled, while others are awaited.
	c.requestProgress()
	one.send(t, progressAt(13))
	c.create(&pb.WatchCreateRequest{WatchId: 3, Key: []byte("third"), StartRevision: 2})
	three := b.open()
	get(t, b.asked)
	three.send(t, createdAt(13))
	get(t, b.asked) // again, because it exists only now
	c.expect("w3 rev=13 created")
	c.cancel(2)
	c.expect("w2 rev=11 canceled compacted=0 \"\"")
	three.send(t, puts(13, 7))
	three.send(t, progressAt(14))
	c.expect("w3 rev=13 PUT@7", "w-1 rev=13")

	// Unrequested progress notifications go to the watchers that asked for them, as always.
	three.send(t, progressAt(15))
	three.send(t, puts(16, 16))
	c.expect("w3 rev=16 PUT@16")
}
