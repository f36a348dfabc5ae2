package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/proxy/httpproxy"
)

func TestFlagsReachTheProxy(t *testing.T) {
	for _, tc := range []struct {
		args string
		get  func(httpproxy.Options, httpproxy.TransportOptions) time.Duration
		want time.Duration
	}{
		{"--proxy-failure-wait=7", func(o httpproxy.Options, _ httpproxy.TransportOptions) time.Duration { return o.FailureWait }, 7 * time.Millisecond},
		{"--proxy-refresh-interval=7", func(o httpproxy.Options, _ httpproxy.TransportOptions) time.Duration { return o.Refresh }, 7 * time.Millisecond},
		{"--proxy-dial-timeout=7", func(_ httpproxy.Options, o httpproxy.TransportOptions) time.Duration { return o.DialTimeout }, 7 * time.Millisecond},
		{"--proxy-write-timeout=7", func(_ httpproxy.Options, o httpproxy.TransportOptions) time.Duration { return o.WriteTimeout }, 7 * time.Millisecond},
		{"--proxy-read-timeout=7", func(_ httpproxy.Options, o httpproxy.TransportOptions) time.Duration { return o.ReadTimeout }, 7 * time.Millisecond},
		{"", func(_ httpproxy.Options, o httpproxy.TransportOptions) time.Duration { return o.ReadTimeout }, 0},
		{"", func(o httpproxy.Options, _ httpproxy.TransportOptions) time.Duration { return o.FailureWait }, 5 * time.Second},
	} {
		if got := tc.get(parse(t, tc.args).HTTPProxy()); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.args, got, tc.want)
		}
	}
}

// A proxy finds the members through any of its peers, forwards their answers and saves the
// peer URLs.
func TestProxy(t *testing.T) {
	member := httptest.NewUnstartedServer(nil)
	member.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/members" {
			w.Header().Set("X-Etcd-Cluster-Id", "1")
			io.WriteString(w, `[{"id":1,"peerURLs":["`+member.URL+`"],"name":"m","clientURLs":["`+member.URL+`"]}]`)
			return
		}
		io.WriteString(w, "from the member: "+r.Method+" "+r.URL.Path)
	})
	member.Start()
	defer member.Close()
	for _, tc := range []struct{ args, method, path, want string }{
		{"--proxy=on", "PUT", "/v2/keys/a", "from the member: PUT /v2/keys/a"},
		{"--proxy=readonly", "GET", "/version", "from the member: GET /version"},
		{"--proxy=readonly", "PUT", "/v2/keys/a", ""},
		{"--proxy=on", "OPTIONS", "/v2/keys/a", ""},
	} {
		cfg := parse(t, tc.args+" --name=p --initial-cluster=m="+member.URL+",gone=http://127.0.0.1:1 --listen-client-urls=http://127.0.0.1:0")
		p, err := startProxy(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		front := "http://" + p.client[0].l.Addr().(*net.TCPAddr).String()
		deadline := time.Now().Add(time.Minute)
		for {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, front+tc.path, strings.NewReader(""))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode == http.StatusServiceUnavailable && time.Now().Before(deadline) {
				time.Sleep(10 * time.Millisecond) // it has not asked the peers yet
				continue
			}
			if string(b) != tc.want {
				t.Errorf("%s: %s %s answered by %d %q, want %q", tc.args, tc.method, tc.path, resp.StatusCode, b, tc.want)
			}
			break
		}
		for tc.want != "" {
			kept, err := httpproxy.Remembered(cfg.ProxyDir())
			if err != nil {
				t.Fatal(err)
			}
			if slices.Equal(kept, []string{member.URL}) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: kept %v, want the one member", tc.args, kept)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if proxy, err := cfg.CheckDataDir(); !proxy || err != nil {
			t.Errorf("%s: at its next start: proxy %v, %v", tc.args, proxy, err)
		}
		for _, s := range p.https {
			s.Close()
		}
		p.closeListeners()
	}
}
