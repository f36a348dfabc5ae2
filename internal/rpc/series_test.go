package rpc

import (
	"context"
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/metrics"
)

// counted is the value of a counter.
func counted(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	return m.Counter.GetValue()
}

// seriesOf is how many series have a name.
func seriesOf(t *testing.T, name string) int {
	t.Helper()
	families, err := metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return len(f.Metric)
		}
	}
	return 0
}

// TestSeries checks that the series are there from the start and what calls add.
func TestSeries(t *testing.T) {
	f := newFake(t)
	o := testOptions()
	o.Extensive = true
	conn := dialRaw(t, serve(t, o, f))
	const methods = 6 + 1 + 5 + 5 + 8 + 17 + 3
	for name, want := range map[string]int{
		"grpc_server_started_total":      methods,
		"grpc_server_handled_total":      methods * 17,
		"grpc_server_msg_received_total": methods,
		"grpc_server_msg_sent_total":     methods,
		"grpc_server_handling_seconds":   methods,
	} {
		if got := seriesOf(t, name); got != want {
			t.Errorf("%s: got %d series, want %d", name, got, want)
		}
	}
	read := func() string {
		label := []string{"unary", "etcdserverpb.KV", "Put"}
		return fmt.Sprintf("started %v, received %v, sent %v, OK %v, InvalidArgument %v",
			counted(seriesStarted.WithLabelValues(label...)),
			counted(seriesReceived.WithLabelValues(label...)),
			counted(seriesSent.WithLabelValues(label...)),
			counted(seriesHandled.WithLabelValues(append(label, "OK")...)),
			counted(seriesHandled.WithLabelValues(append(label, "InvalidArgument")...)))
	}
	for _, v := range []interface{ Reset() }{seriesStarted, seriesReceived, seriesSent, seriesHandled} {
		v.Reset()
	}
	conn = dialRaw(t, serve(t, o, f))
	sentBytes := counted(metrics.NetworkClientGRPCSentBytesTotal)
	gotBytes := counted(metrics.NetworkClientGRPCReceivedBytesTotal)
	req := &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}
	var resp pb.PutResponse
	for range 2 {
		if err := conn.Invoke(testContext(t), "/etcdserverpb.KV/Put", req, &resp); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := counted(metrics.NetworkClientGRPCReceivedBytesTotal)-gotBytes, float64(2*proto.Size(req)); got != want {
		t.Errorf("received %v bytes, want %v", got, want)
	}
	if got, want := counted(metrics.NetworkClientGRPCSentBytesTotal)-sentBytes, float64(2*proto.Size(&resp)); got != want {
		t.Errorf("sent %v bytes, want %v", got, want)
	}
	if err := conn.Invoke(testContext(t), "/etcdserverpb.KV/Put", &pb.PutRequest{}, &resp); err == nil {
		t.Fatal("no error")
	}
	if got, want := read(), "started 3, received 3, sent 3, OK 2, InvalidArgument 1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// lateService answers one method with what it gets.
func lateService(s grpc.ServiceRegistrar) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "example.Late",
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			req := new(pb.PutRequest)
			if err := decode(req); err != nil {
				return nil, err
			}
			return intercept(ctx, req, &grpc.UnaryServerInfo{FullMethod: "/example.Late/Echo"}, func(_ context.Context, req any) (any, error) { return req, nil })
		}}},
	}, nil)
}

// TestLateService checks that a service that is registered after NewServer is
// admitted and counted.
func TestLateService(t *testing.T) {
	f := newFake(t)
	lis := bufconn.Listen(1 << 16)
	s := NewServer(testOptions(), f)
	lateService(s)
	go s.Serve(lis)
	t.Cleanup(s.Stop)
	conn := dialRaw(t, func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) })
	var resp pb.PutRequest
	if err := conn.Invoke(testContext(t), "/example.Late/Echo", &pb.PutRequest{Lease: 5}, &resp); err != nil || resp.Lease != 5 {
		t.Errorf("got %v, %v", &resp, err)
	}
	if got := counted(seriesHandled.WithLabelValues("unary", "example.Late", "Echo", "OK")); got != 1 {
		t.Errorf("counted %v calls, want 1", got)
	}
	seriesHandled.DeletePartialMatch(prometheus.Labels{"grpc_service": "example.Late"})
	for _, v := range []*prometheus.CounterVec{seriesStarted, seriesReceived, seriesSent} {
		v.DeletePartialMatch(prometheus.Labels{"grpc_service": "example.Late"})
	}
	f.capable.Store(false)
	if err := conn.Invoke(testContext(t), "/example.Late/Echo", &pb.PutRequest{}, &resp); status.Convert(err).Message() != "etcdserver: not capable" {
		t.Errorf("got %v", err)
	}
}
