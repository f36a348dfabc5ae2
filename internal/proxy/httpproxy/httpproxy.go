// Package httpproxy is the v2 proxy: a process that is not a member and forwards HTTP
// requests to the members.
//
// In: requests on the client URLs, the peer URLs of some members. Out: the same requests to
// a member that answers, and its answers as they arrive. Always true: a request is sent to
// another member only if the previous one could not be reached, so an answer of a member is
// final; the body of a request is held in memory and bounded; the peer URLs of the cluster
// are saved in a file that has precedence over the flags at the next start.
package httpproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/membership"
	"quorate/internal/metrics"
)

// maxBody bounds the body of a request; members accept 10 MiB.
const maxBody = 64 << 20

// Options of a proxy. Dir, Members, Transport and Logger must be set.
type Options struct {
	Dir    string   // where the peer URLs are saved; created if missing
	Peers  []string // peer URLs for the first start
	Logger *zap.Logger
	// Members asks the peer URLs, in order, for the members of the cluster.
	Members func(ctx context.Context, peers []string) ([]membership.Member, error)
	// Transport sends requests to members; NewTransport creates one.
	Transport   http.RoundTripper
	FailureWait time.Duration // how long a member that could not be reached is skipped
	Refresh     time.Duration // interval of requests for the member list
}

// Proxy forwards requests. It is an http.Handler, safe for concurrent use.
type Proxy struct {
	lg        *zap.Logger
	dir       *directory
	refresh   time.Duration
	transport http.RoundTripper
}

// Remembered returns the peer URLs that an earlier run saved in dir; none if there was no
// such run.
func Remembered(dir string) ([]string, error) { return remembered(filepath.Join(dir, clusterFile)) }

// New returns a proxy and saves the peer URLs. Run keeps them up to date.
func New(o Options) (*Proxy, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the proxy: %w", err)
	}
	d := newDirectory(o, o.Peers)
	if err := remember(d.file, o.Peers); err != nil {
		return nil, fmt.Errorf("save the peer URLs: %w", err)
	}
	return &Proxy{lg: o.Logger, dir: d, refresh: o.Refresh, transport: o.Transport}, nil
}

// Run refreshes the member list periodically until ctx ends.
func (p *Proxy) Run(ctx context.Context) { p.dir.run(ctx, p.refresh) }

// Endpoints returns the known client URLs of the members.
func (p *Proxy) Endpoints() []string { return p.dir.urls() }

// ServeHTTP forwards a request, or answers why it cannot.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/config/local/proxy" {
		p.serveConfig(w, r)
		return
	}
	began := clock.Now()
	metrics.ProxyRequestsTotal.WithLabelValues(method(r)).Inc()
	code, whole := p.forward(w, r)
	metrics.ProxyHandledTotal.WithLabelValues(method(r), strconv.Itoa(code)).Inc()
	metrics.ProxyHandlingDurationSeconds.WithLabelValues(method(r)).Observe(clock.Since(began).Seconds())
	if !whole {
		panic(http.ErrAbortHandler) // closes the connection: the client must not take a partial answer for a complete one
	}
}

// ReadOnly passes only GET requests to next.
func ReadOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusNotImplemented)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// method returns a label for series, of which clients must not be able to create any
// number.
func method(r *http.Request) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return r.Method
	}
	return "other"
}

func (p *Proxy) serveConfig(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	endpoints := p.dir.urls()
	// Nothing can be done about a client that does not read.
	json.NewEncoder(w).Encode(map[string][]string{"endpoints": endpoints})
}

// forward returns the status of the answer, and whether the client has got all of it.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request) (code int, whole bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return p.refuse(w, r, "", http.StatusInternalServerError, fmt.Sprintf("failed to read request body: %v", err))
	}
	endpoints := p.dir.available()
	if len(endpoints) == 0 {
		return p.refuse(w, r, "zero_endpoints", http.StatusServiceUnavailable, "zero endpoints currently available")
	}
	for _, e := range endpoints {
		resp, err := p.transport.RoundTrip(p.request(r, e, body))
		if err == nil {
			return answer(w, resp)
		}
		if r.Context().Err() != nil {
			return statusClientGone, false
		}
		metrics.ProxyDroppedTotal.WithLabelValues(method(r), "failed_sending_request").Inc()
		p.dir.failed(e, err)
	}
	return p.refuse(w, r, "failed_getting_response", http.StatusBadGateway, fmt.Sprintf("unable to get response from %d endpoint(s)", len(endpoints)))
}

// statusClientGone is only counted: the client is gone.
const statusClientGone = 499

// ofHop are hop-by-hop headers, which are not forwarded.
var ofHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailers", "Transfer-Encoding", "Upgrade"}

func (p *Proxy) request(r *http.Request, e *endpoint, body []byte) *http.Request {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = e.url.Scheme, e.url.Host
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	if len(body) == 0 {
		out.Body = http.NoBody
	}
	out.Close = false
	for _, h := range ofHop {
		out.Header.Del(h)
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		if prior := out.Header["X-Forwarded-For"]; len(prior) > 0 {
			host = strings.Join(prior, ", ") + ", " + host
		}
		out.Header.Set("X-Forwarded-For", host)
	}
	return out
}

// ofBrowsers are headers that the proxy sets itself; with the member's they would occur
// twice, which browsers reject.
var ofBrowsers = []string{"Access-Control-Allow-Methods", "Access-Control-Allow-Origin", "Access-Control-Allow-Headers"}

// answer forwards a member's answer as it arrives: events of a watch must not wait for
// later ones.
func answer(w http.ResponseWriter, resp *http.Response) (code int, whole bool) {
	defer resp.Body.Close()
	for _, name := range slices.Concat(ofHop, ofBrowsers) {
		resp.Header.Del(name)
	}
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	flush := http.NewResponseController(w)
	if flush.Flush() != nil { // the headers show the client that a watch has begun
		return resp.StatusCode, false
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil || flush.Flush() != nil {
				return resp.StatusCode, false
			}
		}
		if err != nil {
			return resp.StatusCode, errors.Is(err, io.EOF)
		}
	}
}

func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, reason string, code int, why string) (int, bool) {
	if reason != "" {
		metrics.ProxyDroppedTotal.WithLabelValues(method(r), reason).Inc()
	}
	p.lg.Warn("cannot forward a request", zap.String("method", r.Method), zap.String("path", r.URL.Path), zap.String("reason", why))
	b, err := json.Marshal(map[string]string{"message": "httpproxy: " + why})
	if err != nil {
		return code, false
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(b)
	return code, true
}
