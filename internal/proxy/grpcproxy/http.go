package grpcproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"quorate/internal/httpapi"
)

const (
	healthTimeout = time.Second     // of the read
	watchTimeout  = 3 * time.Second // until the watch is created

	metricsTimeout = 10 * time.Second
	metricsBytes   = 64 << 20 // bytes of a member's page
)

// Pages serves the HTTP/1 pages of the proxy.
type Pages struct {
	Members *http.Client     // for requests to members
	Scheme  string           // for endpoints without a scheme
	Self    *clientv3.Client // connects to this proxy at its advertised address; nil: no address is advertised
	Pprof   bool
	Logger  *zap.Logger
}

// Handler serves the pages; any other path is not found.
func (p *Proxy) Handler(g Pages) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", g.memberMetrics(p.client.Endpoints()))
	mux.HandleFunc("/health", g.health(func(ctx context.Context) string { return readReason(ctx, p.client) }))
	httpapi.HandleMetrics(mux, "/proxy/metrics")
	mux.HandleFunc("/proxy/health", g.health(g.selfReason))
	if g.Pprof {
		httpapi.HandlePprof(mux)
	}
	return mux
}

// memberMetrics forwards the page of one member, always the same one.
func (g Pages) memberMetrics(endpoints []string) http.HandlerFunc {
	target := endpoints[rand.IntN(len(endpoints))]
	if !strings.Contains(target, "://") {
		target = g.Scheme + "://" + target
	}
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), metricsTimeout)
		defer cancel()
		body, err := g.fetch(ctx, target+"/metrics")
		if err != nil {
			g.Logger.Warn("no metrics from the member", zap.String("endpoint", target), zap.Error(err))
			http.Error(w, "Internal server error", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		w.Write(body)
	}
}

func (g Pages) fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := g.Members.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, metricsBytes+1))
	if err == nil && len(body) > metricsBytes {
		err = fmt.Errorf("%s has more than %d bytes", url, metricsBytes)
	}
	return body, err
}

// health answers like the page of a member. An empty reason is healthy.
func (g Pages) health(reason func(context.Context) string) http.HandlerFunc {
	type body struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		why := reason(r.Context())
		data, _ := json.Marshal(body{Health: fmt.Sprint(why == ""), Reason: why}) // strings can always be encoded
		if why != "" {
			http.Error(w, string(data), http.StatusServiceUnavailable)
			g.Logger.Warn(r.URL.Path+" error", zap.ByteString("output", data), zap.Int("status-code", http.StatusServiceUnavailable))
			return
		}
		w.Write(data)
	}
}

// readReason returns why a key cannot be read. Missing permission is not a failure.
func readReason(ctx context.Context, kv clientv3.KV) string {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	_, err := kv.Get(ctx, "a")
	if err == nil || errors.Is(err, rpctypes.ErrPermissionDenied) {
		return ""
	}
	return fmt.Sprintf("GET ERROR:%s", err)
}

// selfReason returns why clients cannot use this proxy.
func (g Pages) selfReason(ctx context.Context) string {
	if g.Self == nil {
		return "no connection to proxy"
	}
	if why := readReason(ctx, g.Self); why != "" {
		return why
	}
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	select {
	case <-g.Self.Watch(ctx, "a", clientv3.WithCreatedNotify()):
		if ctx.Err() == nil {
			return ""
		}
	case <-ctx.Done():
	}
	return "WATCH TIMEOUT"
}
