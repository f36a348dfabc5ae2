package rpc

import (
	"fmt"
	"testing"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/metrics"
)

// counted returns the value of a counter.
func counted(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	return m.Counter.GetValue()
}

// seriesOf returns the number of metrics with a name.
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

// TestSeries checks that the metrics exist from the start, and what calls add to them.
func TestSeries(t *testing.T) {
	f := newFake(t)
	o := testOptions()
	o.Extensive = true
	serve(t, o, f)
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
	conn := dialRaw(t, serve(t, o, f))
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

// TestGeneratedService checks that a service generated for gRPC's server is admitted and
// counted like the others.
func TestGeneratedService(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	health := healthpb.NewHealthClient(conn)
	before := counted(seriesHandled.WithLabelValues("unary", "grpc.health.v1.Health", "Check", "OK"))
	if r, err := health.Check(testContext(t), &healthpb.HealthCheckRequest{}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v", r, err)
	}
	if got := counted(seriesHandled.WithLabelValues("unary", "grpc.health.v1.Health", "Check", "OK")) - before; got != 1 {
		t.Errorf("counted %v calls, want 1", got)
	}
	w, err := health.Watch(testContext(t), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := w.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v", r, err)
	}
	f.capable.Store(false)
	if _, err := health.Check(testContext(t), &healthpb.HealthCheckRequest{}); status.Convert(err).Message() != "etcdserver: not capable" {
		t.Errorf("got %v", err)
	}
}
