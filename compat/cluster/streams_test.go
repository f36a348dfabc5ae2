package cluster

import (
	"context"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"quorate/compat/child"
)

// A stop ends the calls that could last forever, of every kind, and tells their clients why. If it waited for
// them, they would be cut off at its end instead.
func TestStopEndsEndlessCalls(t *testing.T) {
	t.Parallel()
	tr := newTrio(t)
	tr.start(t)
	c := tr.clients[0]
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	grant, err := c.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 600})
	if err != nil {
		t.Fatal(err)
	}
	// Requests of these two services need a name and a lease first, and a KeyValue needs them too.
	claim := func(method, name string, lease int64) error {
		return c.Conn.Invoke(ctx, method, &mvccpb.KeyValue{Key: []byte(name), CreateRevision: lease}, new(emptypb.Empty))
	}
	const lock, campaign = "/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"
	for _, method := range []string{lock, campaign} {
		if err := claim(method, method, grant.ID); err != nil {
			t.Fatal(err)
		}
	}
	other, err := c.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 600})
	if err != nil {
		t.Fatal(err)
	}
	// Each stream sends a first response, so that it is open; the next one is its end. A call that waits for its
	// turn is known to wait by its key.
	type end struct {
		name string
		err  error
	}
	ends := make(chan end)
	next := func(name string, recv func() error) {
		t.Helper()
		if err := recv(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		go func() { ends <- end{name, recv()} }()
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	alive, err := c.Lease.LeaseKeepAlive(ctx)
	must(err)
	must(alive.Send(&pb.LeaseKeepAliveRequest{ID: grant.ID}))
	next("keepalive", func() error { _, err := alive.Recv(); return err })
	watch, err := c.Watcher.Watch(ctx)
	must(err)
	must(watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("w")}}}))
	next("watch", func() error { _, err := watch.Recv(); return err })
	observe, err := c.Conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/v3electionpb.Election/Observe")
	must(err)
	must(observe.SendMsg(&mvccpb.KeyValue{Key: []byte(campaign)}))
	must(observe.CloseSend())
	next("observe", func() error { return observe.RecvMsg(new(emptypb.Empty)) })
	health, err := healthpb.NewHealthClient(c.Conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	must(err)
	next("health", func() error { _, err := health.Recv(); return err })
	for _, method := range []string{lock, campaign} {
		go func() { ends <- end{method, claim(method, method, other.ID)} }()
	}
	child.Eventually(t, limit, "two wait for their turn", func() error {
		r, err := c.Lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: other.ID, Keys: true})
		if err == nil && len(r.Keys) < 2 {
			err = status.Errorf(codes.NotFound, "%q", r.Keys)
		}
		return err
	})
	began := time.Now()
	tr.procs[0].Signal(syscall.SIGTERM)
	for range 6 {
		e := <-ends
		if status.Code(e.err) != codes.Unavailable || status.Convert(e.err).Message() != "etcdserver: server stopped" {
			t.Errorf("%s ended with %v", e.name, e.err)
		}
	}
	tr.procs[0].Wait(t, limit)
	t.Logf("stopped within %v", time.Since(began).Round(time.Millisecond))
}
