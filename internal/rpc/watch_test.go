package rpc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestWatch(t *testing.T) {
	f := newFake(t)
	c := dialClient(t, serve(t, testOptions(), f))
	ctx := testContext(t)
	live := c.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-live; !r.Created || r.Err() != nil {
		t.Fatalf("got %+v, want created", r)
	}
	for i := range 20 {
		if _, err := c.Put(ctx, fmt.Sprint("k", i), strings.Repeat("v", i*1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Delete(ctx, "k3"); err != nil {
		t.Fatal(err)
	}
	check := func(name string, w clientv3.WatchChan) {
		var evs []*clientv3.Event
		for len(evs) < 21 {
			r, ok := <-w
			if !ok || r.Err() != nil {
				t.Fatalf("%s: after %d events: %v", name, len(evs), r.Err())
			}
			if h := r.Header; h.ClusterId != fakeCluster || h.MemberId != fakeMember || h.RaftTerm != fakeTerm {
				t.Fatalf("%s: header %v", name, &h)
			}
			evs = append(evs, r.Events...)
		}
		for i, ev := range evs[:20] {
			if ev.Type != mvccpb.Event_PUT || string(ev.Kv.Key) != fmt.Sprint("k", i) || len(ev.Kv.Value) != i*1000 || ev.Kv.ModRevision != int64(i+2) {
				t.Errorf("%s: event %d is %v of %s at %d", name, i, ev.Type, ev.Kv.Key, ev.Kv.ModRevision)
			}
		}
		if ev := evs[20]; ev.Type != mvccpb.Event_DELETE || string(ev.Kv.Key) != "k3" || ev.Kv.ModRevision != 22 {
			t.Errorf("%s: last event is %v", name, ev)
		}
	}
	check("live", live)
	check("from history", c.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithRev(2)))

	if err := c.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-live; !r.IsProgressNotify() || r.Header.Revision != 22 {
		t.Errorf("got %+v, want progress at 22", r)
	}
}

// TestWatchStream uses a watch stream in every way that the API allows.
func TestWatchStream(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *pb.WatchRequest) {
		t.Helper()
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) {
		t.Helper()
		r, err := s.Recv()
		if err != nil {
			t.Fatalf("got %v, want %s", err, want)
		}
		got := fmt.Sprintf("id=%d created=%v canceled=%v events=%d %s", r.WatchId, r.Created, r.Canceled, len(r.Events), r.CancelReason)
		if got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
	create := func(r *pb.WatchCreateRequest) {
		t.Helper()
		send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
	}
	create(&pb.WatchCreateRequest{Key: []byte("a")})
	expect("id=0 created=true canceled=false events=0 ")
	create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 7})
	expect("id=7 created=true canceled=false events=0 ")
	create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 7})
	expect("id=-1 created=true canceled=true events=0 mvcc: duplicate watch ID provided on the WatchStream")
	create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")})
	expect("id=-1 created=true canceled=true events=0 mvcc: watcher range is empty")
	create(&pb.WatchCreateRequest{Key: []byte("b"), StartRevision: -1})
	expect("id=-1 created=true canceled=true events=0 etcdserver: mvcc: required revision has been compacted")
	send(&pb.WatchRequest{}) // no effect
	send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 99}}})
	if _, err := f.Put(ctx, &pb.PutRequest{Key: []byte("b")}, nil); err != nil {
		t.Fatal(err)
	}
	expect("id=7 created=false canceled=false events=1 ")
	send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 7}}})
	expect("id=7 created=false canceled=true events=0 ")
	send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	expect("id=-1 created=false canceled=false events=0 ")

	if err := s.CloseSend(); err != nil { // its watchers remain
		t.Fatal(err)
	}
	if _, err := f.Put(ctx, &pb.PutRequest{Key: []byte("a")}, nil); err != nil {
		t.Fatal(err)
	}
	expect("id=0 created=false canceled=false events=1 ")
}

// TestWatchEnds checks how a watch stream ends, and what is counted.
func TestWatchEnds(t *testing.T) {
	f := newFake(t)
	series := newMethodSeries(watchService, grpc.MethodInfo{Name: "Watch", IsClientStream: true, IsServerStream: true}, false)
	count := func(c codes.Code) float64 { return counted(series.handled[c]) }
	conn := dialRaw(t, serve(t, testOptions(), f), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))

	open := func(ctx context.Context) grpc.ClientStream {
		t.Helper()
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/etcdserverpb.Watch/Watch")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg([]byte("\x0a\x03\x0a\x01k")); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(new([]byte)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(testContext(t))
	if err := s.SendMsg([]byte("\x0a\x7f")); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(new([]byte)); status.Code(err) != codes.Internal {
		t.Errorf("malformed request: got %v", err)
	}
	canceled := count(codes.Canceled)
	ctx, cancel := context.WithCancel(testContext(t))
	s = open(ctx)
	cancel()
	if err := s.RecvMsg(new([]byte)); status.Code(err) != codes.Canceled {
		t.Errorf("canceled by the client: got %v", err)
	}
	// Streams of earlier tests may be counted late, too.
	waitFor(t, "a canceled stream to be counted", func() bool { return count(codes.Canceled) > canceled })

	s = open(testContext(t))
	f.hub.Close()
	if err := s.RecvMsg(new([]byte)); status.Convert(err).Message() != "etcdserver: server stopped" {
		t.Errorf("member stopped: got %v", err)
	}
}

// waitFor waits for something that another goroutine is about to do.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// TestLeaderLost checks that exactly the streams that require a leader are cancelled after
// three election timeouts without one.
func TestLeaderLost(t *testing.T) {
	f := newFake(t)
	o := testOptions()
	o.ElectionTimeout = 5 * time.Millisecond
	conn := dialRaw(t, serve(t, o, f))
	all := streams(t, conn)
	ctx := testContext(t)
	asking := metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	var cut []grpc.ClientStream
	for _, name := range []string{"Watch", "Watch", "LeaseKeepAlive"} {
		s, err := all[name](asking)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(new(pb.SnapshotResponse)); err != nil {
			t.Fatal(err)
		}
		cut = append(cut, s)
	}
	kept, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f.leader.Store(0)
	for _, s := range cut {
		err := s.RecvMsg(new(pb.SnapshotResponse))
		if st := status.Convert(err); st.Code() != codes.Unavailable || st.Message() != "etcdserver: no leader" {
			t.Errorf("got %v, want no leader", err)
		}
	}
	if err := kept.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{}}}); err != nil {
		t.Fatal(err)
	}
	if r, err := kept.Recv(); err != nil || !r.Created {
		t.Errorf("stream that asks for no leader: got %v, %v", r, err)
	}

	// A short absence cancels nothing, and new streams start a new count.
	w := &leaderWatch{leader: f.Leader, every: time.Hour, streams: make(map[*cutter]struct{})}
	var cause error
	forget := w.add(func(err error) { cause = err })
	if !w.look(false) || cause != nil {
		t.Errorf("cut by %v although there is a leader", cause)
	}
	if w.look(true); cause != rpctypes.ErrGRPCNoLeader {
		t.Errorf("cut by %v, want no leader", cause)
	}
	forget()
	if w.look(false) {
		t.Error("looks on with no stream left")
	}
}
