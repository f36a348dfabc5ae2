// Package httpapi serves the member's plain HTTP endpoints: health, version, metrics and
// profiles.
//
// In: requests on the client and metrics URLs, and a small interface to the member.
// Out: http.Handlers. Always true: paths, bodies, status codes and headers are those of
// etcd 3.7, because probes and load balancers compare them as text. Handlers are stateless.
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

	"quorate/internal/ids"
	"quorate/internal/transport/peerapi"
)

// headerTimeout limits the time a client may take to send the headers of a request.
const headerTimeout = 30 * time.Second

// Backend is what the client and metrics handlers need of the member. All methods must be
// safe for concurrent use.
type Backend interface {
	// Alarms returns the active alarms of all members.
	Alarms() []*pb.AlarmMember
	// Leader returns the ID of the leader known to this member, 0 if none.
	Leader() ids.Member
	// IsLearner reports whether this member is a learner.
	IsLearner() bool
	// CheckRead reads at most one key, linearizably or from local data, and returns the
	// error of the read. It bypasses authentication.
	CheckRead(ctx context.Context, serializable bool) error
	// NoRoom says why all writes are refused, such as a full disk; "" if they are not.
	NoRoom() string
	// Versions returns the version of the cluster and of the stored data, such as 3.7.0;
	// "" if not decided.
	Versions() (cluster, storage string)
	// RaftStatus returns the raft status as JSON, for /debug/vars.
	RaftStatus() json.RawMessage
}

// Options configures the client handler.
type Options struct {
	Logger         *zap.Logger
	RequestTimeout time.Duration // timeout of the read behind /health
	EnablePprof    bool          // profiles under /debug/pprof/
	EnableTrace    bool          // /debug/requests and /debug/events; shows keys and values of requests
	CORS           []string      // allowed origins; {"*"} or empty allows all
	HostWhitelist  []string      // allowed Host values of plain HTTP; {"*"} or empty allows all
	// RefuseNamed reports whether the JSON gateway rejects clients whose certificate has a
	// common name: they may expect to act as that user, but do not. nil means no.
	RefuseNamed func() bool
	// CheckV2 replaces the read behind /health by a read through the v2 store. nil unless
	// the v2 API is served.
	CheckV2 func(context.Context) error

	// Extra adds handlers by pattern, such as /v3/ for the JSON gateway.
	Extra map[string]http.Handler
}

// NewClientHandler returns the handler of the client URLs.
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

// NewMetricsHandler returns the handler of the metrics URLs, which serves only /metrics,
// /health, /livez and /readyz.
func NewMetricsHandler(b Backend, o Options) http.Handler {
	mux := http.NewServeMux()
	handleHealth(mux, b, o)
	HandleMetrics(mux, "/metrics")
	return mux
}

// NewProxyHandler returns the handler of the client URLs of a v2 proxy: its own metrics,
// and next for everything else. next never gets OPTIONS requests.
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

// NewServer returns an HTTP server with limits that keep slow clients from holding
// connections. Errors of clients are not logged.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, ErrorLog: discardLog}
}

// NewTLSServer is NewServer with TLS. It also serves HTTP/2, including gRPC calls of clients
// that offered HTTP/1.1 too; those go to calls unless it is nil.
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
	s.TLSConfig = t.Clone() // net/http only looks at its cipher suites
	// Larger values would make net/http use its own default.
	s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: int(min(maxStreams, math.MaxInt32))}
	return s
}

// allow replies 405 unless the request has the given method.
func allow(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}
