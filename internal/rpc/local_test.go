package rpc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/gateway"
)

// bothWays starts a server and returns its local client and one that has a connection.
func bothWays(t testing.TB, f *fake, o Options) (s *Server, local *Local, remote *grpc.ClientConn) {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	s = NewServer(o, fit(f))
	go s.Serve(lis)
	t.Cleanup(s.Stop)
	return s, s.NewLocal(), dialRaw(t, func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) })
}

// outcome is what a client sees of a call.
func outcome(m proto.Message, err error, header, trailer metadata.MD) string {
	st := status.Convert(err)
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		b = nil
	}
	return fmt.Sprintf("%v %q %d bytes %x, header %v, trailer %v", st.Code(), st.Message(), len(b), b[:min(len(b), 40)], header, trailer)
}

// TestLocalCalls makes the same unary calls through a connection and without: what the clients
// see is the same.
func TestLocalCalls(t *testing.T) {
	f := newFake(t)
	_, local, remote := bothWays(t, f, testOptions())
	large := bytes.Repeat([]byte{'v'}, 70_000)
	for i := range 3 {
		if _, err := pb.NewKVClient(local).Put(testContext(t), &pb.PutRequest{Key: fmt.Appendf(nil, "key%d", i), Value: large}); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error){
		"range": func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return pb.NewKVClient(c).Range(ctx, &pb.RangeRequest{Key: []byte("key0")}, opts...)
		},
		"list": func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return pb.NewKVClient(c).Range(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}, opts...)
		},
		"nothing": func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return pb.NewKVClient(c).Range(ctx, &pb.RangeRequest{Key: []byte("x"), RangeEnd: []byte("y")}, opts...)
		},
		"refused": func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return pb.NewKVClient(c).Put(ctx, &pb.PutRequest{}, opts...)
		},
		"too large": func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return pb.NewKVClient(c).Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 3<<20)}, opts...)
		},
		"headers too large": func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			ctx = metadata.AppendToOutgoingContext(ctx, "x", strings.Repeat("y", maxHeaderBytes))
			return pb.NewClusterClient(c).MemberList(ctx, &pb.MemberListRequest{}, opts...)
		},
		"no leader": func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			defer f.leader.Store(f.leader.Swap(0))
			return pb.NewMaintenanceClient(c).Status(metadata.AppendToOutgoingContext(ctx, "hasleader", "true"), &pb.StatusRequest{}, opts...)
		},
		"unknown method": func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return &pb.StatusResponse{}, c.Invoke(ctx, "/etcdserverpb.KV/None", &pb.StatusRequest{}, &pb.StatusResponse{}, opts...)
		},
	}
	for name, call := range cases {
		t.Run(name, func(t *testing.T) {
			see := func(c grpc.ClientConnInterface) string {
				var header, trailer metadata.MD
				m, err := call(testContext(t), c, grpc.Header(&header), grpc.Trailer(&trailer))
				return outcome(m, err, header, trailer)
			}
			if got, want := see(local), see(remote); got != want {
				t.Errorf("without a connection:\n%s\nwith one:\n%s", got, want)
			}
		})
	}
}

// TestLocalStream has a watch stream as clients know it, and a list in messages.
func TestLocalStream(t *testing.T) {
	f := newFake(t)
	_, local, _ := bothWays(t, f, testOptions())
	ctx, cancel := context.WithCancel(testContext(t))
	w, err := pb.NewWatchClient(local).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}); err != nil {
		t.Fatal(err)
	}
	if h, err := w.Header(); err != nil || len(h.Get("content-type")) != 1 {
		t.Fatalf("header %v, %v", h, err)
	}
	if r, err := w.Recv(); err != nil || !r.Created {
		t.Fatalf("got %v, %v", r, err)
	}
	for i := range 500 { // far more than may wait
		if _, err := pb.NewKVClient(local).Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: fmt.Appendf(make([]byte, 1000), "%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < 500; {
		r, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range r.Events {
			if want := fmt.Appendf(make([]byte, 1000), "%d", i); !bytes.Equal(ev.Kv.Value, want) {
				t.Fatalf("event %d has another value", i)
			}
			i++
		}
	}
	cancel()
	for err = nil; err == nil; {
		_, err = w.Recv()
	}
	if status.Code(err) != codes.Canceled {
		t.Errorf("after cancel: %v", err)
	}
}

// TestLocalEnds ends calls by a deadline, by Close and by a stop of the server.
func TestLocalEnds(t *testing.T) {
	f := newFake(t)
	s, local, _ := bothWays(t, f, testOptions())
	if _, err := pb.NewKVClient(local).Range(overdue{context.Background()}, &pb.RangeRequest{Key: []byte("k")}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call whose deadline has passed: %v", err)
	}
	open := func(l *Local, ctx context.Context) (pb.Watch_WatchClient, error) {
		w, err := pb.NewWatchClient(l).Watch(ctx)
		if err == nil {
			err = w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}})
		}
		if err == nil || err == io.EOF { // which Recv explains
			_, err = w.Recv()
		}
		return w, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	w, err := open(local, ctx)
	for err == nil {
		_, err = w.Recv()
	}
	if got := status.Convert(err); got.Code() != codes.DeadlineExceeded || got.Message() != "context deadline exceeded" {
		t.Errorf("after the deadline: %v", err)
	}
	if w, err = open(local, context.Background()); err != nil {
		t.Fatal(err)
	}
	local.Close()
	if _, err = w.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("after Close: %v", err)
	}
	if _, err := open(local, context.Background()); status.Code(err) != codes.Unavailable {
		t.Errorf("a call after Close: %v", err)
	}
	other := s.NewLocal()
	if w, err = open(other, context.Background()); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if _, err = w.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("after Stop: %v", err)
	}
	s.GracefulStop() // returns when no handler is left
}

// overdue is a context whose deadline has passed, but whose timer is late.
type overdue struct{ context.Context }

func (overdue) Deadline() (time.Time, bool) { return time.Now().Add(-time.Nanosecond), true }

// usedCPU returns the CPU time of this process.
func usedCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkGateway measures a JSON range, through a connection within the process and without.
func BenchmarkGateway(b *testing.B) {
	_, local, remote := bothWays(b, newFake(b), testOptions())
	for name, c := range map[string]grpc.ClientConnInterface{"connection": remote, "local": local} {
		b.Run(name, func(b *testing.B) {
			h, err := gateway.New(context.Background(), c, gateway.Options{})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			before := usedCPU(b)
			for b.Loop() {
				r := httptest.NewRequest("POST", "/v3/kv/range", strings.NewReader(`{"key":"Zm9v"}`))
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, r); w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
			b.ReportMetric(float64((usedCPU(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}
