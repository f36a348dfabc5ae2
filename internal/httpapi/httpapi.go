// Package httpapi serves what the member says over plain HTTP: health, version,
// metrics and profiles.
//
// In: requests on the client and metrics URLs, and a small interface to
// the member. Out: http.Handlers. Always true: paths, bodies, status
// codes and headers are those of etcd 3.7, because probes and load balancers
// compare them as text. Handlers keep no state of their own.
package httpapi

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"quorate/internal/transport/peerapi"
)

// headerTimeout bounds how long a client may take to send the headers of a
// request.
const headerTimeout = 30 * time.Second

// Backend is what the client and metrics handlers ask the member. All methods
// are called from request goroutines, concurrently.
type Backend interface {
	// Alarms returns the active alarms of all members.
	Alarms() []*pb.AlarmMember
	// Leader returns the ID of the leader as this member knows it, 0 for none.
	Leader() uint64
	// IsLearner reports whether this member is one.
	IsLearner() bool
	// CheckRead reads at most one key, as a linearizable read or from local
	// data, and returns why that failed. It is not subject to authentication.
	CheckRead(ctx context.Context, serializable bool) error
	// NoRoom reports whether all writes are refused because a disk is full.
	NoRoom() bool
	// Versions returns the version of the cluster and of the stored data, such
	// as 3.7.0; empty when not decided.
	Versions() (cluster, storage string)
	// RaftStatus returns the state of raft as JSON, for /debug/vars.
	RaftStatus() json.RawMessage
}

// Options of the client handler.
type Options struct {
	Logger         *zap.Logger
	RequestTimeout time.Duration // of the read behind /health
	EnablePprof    bool          // profiles under /debug/pprof/
	EnableTrace    bool          // /debug/requests and /debug/events; shows keys and values of requests
	CORS           []string      // allowed origins; {"*"} or empty allows all
	HostWhitelist  []string      // allowed Host values of plain HTTP; {"*"} or empty allows all
	// RefuseNamed says whether the JSON gateway refuses clients whose
	// certificate has a common name: they may believe to be that user, and are
	// not. Nil means no.
	RefuseNamed func() bool
	// CheckV2 replaces the read behind /health when the v2 API is served: a read
	// through the v2 store. Nil otherwise.
	CheckV2 func(context.Context) error

	// Extra serves more patterns, such as /v3/ for the JSON gateway.
	Extra map[string]http.Handler
}

// NewClientHandler serves the client URLs.
func NewClientHandler(b Backend, o Options) http.Handler {
	mux := http.NewServeMux()
	handleHealth(mux, b, o)
	HandleMetrics(mux, "/metrics")
	mux.Handle(peerapi.PathVersion, peerapi.VersionHandler(b.Versions))
	mux.Handle("/debug/vars", varsHandler(b.RaftStatus))
	if o.EnablePprof {
		HandlePprof(mux)
	}
	if o.EnableTrace {
		handleTrace(mux)
	}
	for pattern, h := range o.Extra {
		mux.Handle(pattern, h)
	}
	return newAccessControl(mux, o)
}

// NewMetricsHandler serves the metrics URLs: /metrics, /health, /livez and
// /readyz alone.
func NewMetricsHandler(b Backend, o Options) http.Handler {
	mux := http.NewServeMux()
	handleHealth(mux, b, o)
	HandleMetrics(mux, "/metrics")
	return mux
}

// NewProxyHandler serves the client URLs of a v2 proxy: its own metrics, and
// everything else by next, to which OPTIONS never comes.
func NewProxyHandler(next http.Handler, cors []string) http.Handler {
	mux := http.NewServeMux()
	HandleMetrics(mux, "/metrics")
	mux.Handle("/", next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !crossOrigin(w, r, cors) {
			mux.ServeHTTP(w, r)
		}
	})
}

// NewServer wraps a handler with the limits that keep slow clients from holding
// connections. Mistakes of clients are not logged.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, ErrorLog: discardLog}
}

// NewTLSServer is NewServer behind TLS. It speaks HTTP/2 as well, and a gRPC
// client may have come to it that offered HTTP/1.1, too; calls serves it, if not
// nil.
func NewTLSServer(handler http.Handler, calls http.Handler, t *tls.Config, maxStreams uint32) *http.Server {
	if calls != nil {
		other := handler
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				calls.ServeHTTP(w, r)
				return
			}
			other.ServeHTTP(w, r)
		})
	}
	s := NewServer(handler)
	s.TLSConfig = t.Clone() // net/http looks at its ciphers, and at no more
	// Above that, net/http would take its own default.
	s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: int(min(maxStreams, math.MaxInt32))}
	return s
}

// allow answers 405 to every method but one.
func allow(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}
