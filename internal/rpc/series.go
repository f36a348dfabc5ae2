package rpc

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"quorate/internal/metrics"
)

// The metrics of every gRPC server in the ecosystem, with the names used by its Prometheus
// interceptor.
var (
	seriesStarted = counterVec("grpc_server_started_total", "RPCs started",
		"grpc_type", "grpc_service", "grpc_method")
	seriesHandled = counterVec("grpc_server_handled_total", "RPCs completed, whatever their outcome",
		"grpc_type", "grpc_service", "grpc_method", "grpc_code")
	seriesReceived = counterVec("grpc_server_msg_received_total", "Messages received",
		"grpc_type", "grpc_service", "grpc_method")
	seriesSent = counterVec("grpc_server_msg_sent_total", "Messages sent",
		"grpc_type", "grpc_service", "grpc_method")
	seriesSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "grpc_server_handling_seconds",
		Help: "Time that RPCs took",
	}, []string{"grpc_type", "grpc_service", "grpc_method"})
	registerSeconds sync.Once
)

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	metrics.Registry.MustRegister(v)
	return v
}

// codeCount is the number of gRPC codes, which start at OK = 0.
const codeCount = int(codes.Unauthenticated) + 1

// methodSeries holds the metrics of one method, so that they are looked up only once.
type methodSeries struct {
	started, received, sent prometheus.Counter
	handled                 [codeCount]prometheus.Counter
	seconds                 prometheus.Observer // nil without extensive metrics
}

func newMethodSeries(service string, m grpc.MethodInfo, extensive bool) *methodSeries {
	kind := "unary"
	switch {
	case m.IsClientStream && m.IsServerStream:
		kind = "bidi_stream"
	case m.IsServerStream:
		kind = "server_stream"
	case m.IsClientStream:
		kind = "client_stream"
	}
	s := &methodSeries{
		started:  seriesStarted.WithLabelValues(kind, service, m.Name),
		received: seriesReceived.WithLabelValues(kind, service, m.Name),
		sent:     seriesSent.WithLabelValues(kind, service, m.Name),
	}
	for c := range s.handled {
		s.handled[c] = seriesHandled.WithLabelValues(kind, service, m.Name, codes.Code(c).String())
	}
	if extensive {
		registerSeconds.Do(func() { metrics.Registry.MustRegister(seriesSeconds) })
		s.seconds = seriesSeconds.WithLabelValues(kind, service, m.Name)
	}
	return s
}

// done counts the end of a call. Codes that gRPC does not define are not counted.
func (s *methodSeries) done(err error) {
	if c := int(status.Code(err)); c < codeCount {
		s.handled[c].Inc()
	}
}

// clientVersions holds the counters of etcd_server_client_requests_total for one kind of
// call. The label value comes from the client, so it is bounded: versions beyond the first
// maxClientVersions count as unknown.
type clientVersions struct {
	kind string
	by   atomic.Pointer[map[string]prometheus.Counter] // the map is replaced, never modified
	mu   sync.Mutex                                    // serializes replacements
}

const (
	maxClientVersions = 128
	unknownVersion    = "unknown"
)

func newClientVersions(kind string) *clientVersions {
	v := &clientVersions{kind: kind}
	v.by.Store(&map[string]prometheus.Counter{
		unknownVersion: metrics.ServerClientRequestsTotal.WithLabelValues(kind, unknownVersion),
	})
	return v
}

func (v *clientVersions) inc(version string) {
	c := (*v.by.Load())[version]
	if c == nil {
		c = v.add(version)
	}
	c.Inc()
}

func (v *clientVersions) add(version string) prometheus.Counter {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := *v.by.Load()
	if c := old[version]; c != nil {
		return c
	}
	if len(old) >= maxClientVersions {
		return old[unknownVersion]
	}
	by := maps.Clone(old)
	by[version] = metrics.ServerClientRequestsTotal.WithLabelValues(v.kind, version)
	v.by.Store(&by)
	return by[version]
}
