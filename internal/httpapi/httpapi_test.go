package httpapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"quorate/internal/build"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// member is a Backend that returns its fields.
type member struct {
	alarms       []pb.AlarmType
	leader       ids.Member
	learner      bool
	noRoom       string
	linearizable error
	serializable error
	cluster      string
}

func (m *member) Alarms() []*pb.AlarmMember {
	var list []*pb.AlarmMember
	for _, a := range m.alarms {
		list = append(list, &pb.AlarmMember{MemberID: 1, Alarm: a})
	}
	return list
}
func (m *member) Leader() ids.Member { return m.leader }
func (m *member) IsLearner() bool    { return m.learner }
func (m *member) NoRoom() string     { return m.noRoom }

func (m *member) CheckRead(ctx context.Context, serializable bool) error {
	if _, ok := ctx.Deadline(); !ok && ctx.Done() == nil {
		return errors.New("read without an end")
	}
	if serializable {
		return m.serializable
	}
	return m.linearizable
}
func (m *member) Versions() (string, string)  { return m.cluster, m.cluster }
func (m *member) RaftStatus() json.RawMessage { return json.RawMessage(`{"id":"1"}`) }

func options() Options {
	return Options{Logger: zap.NewNop(), RequestTimeout: time.Second, CORS: []string{"*"}, HostWhitelist: []string{"*"}}
}

// request is one line of a test: a request and the expected response. Header names a header
// and its value, "Name: value".
type request struct {
	method, target string
	body           string
	send           string // header of the request
	status         int
	want           string // body
	header         string // header of the response
}

func (r request) run(t *testing.T, h http.Handler) {
	t.Helper()
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	req := httptest.NewRequestWithContext(t.Context(), method, r.target, strings.NewReader(r.body))
	if name, value, ok := strings.Cut(r.send, ": "); ok {
		req.Header.Set(name, value)
		if name == "Host" {
			req.Host = value
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if w.Code != r.status || w.Body.String() != r.want {
		t.Errorf("%s %s: %d %q\nwant %d %q", method, r.target, w.Code, w.Body.String(), r.status, r.want)
	}
	if name, value, ok := strings.Cut(r.header, ": "); ok && w.Header().Get(name) != value {
		t.Errorf("%s %s: header %s is %q, want %q", method, r.target, name, w.Header().Get(name), value)
	}
}

const notFound = "404 page not found\n"

func TestHealth(t *testing.T) {
	broken := errors.New("etcdserver: request timed out")
	healthy := `{"health":"true","reason":""}`
	sick := func(reason string) string { return `{"health":"false","reason":"` + reason + `"}` + "\n" }
	tests := []struct {
		name string
		m    member
		r    request
	}{
		{"healthy", member{leader: 1}, request{target: "/health", status: 200, want: healthy}},
		{"no leader", member{}, request{target: "/health", status: 503, want: sick("RAFT NO LEADER"), header: "Content-Type: text/plain; charset=utf-8"}},
		{"no leader, serializable", member{}, request{target: "/health?serializable=true", status: 200, want: healthy}},
		{"serializable is a word", member{}, request{target: "/health?serializable=1", status: 503, want: sick("RAFT NO LEADER")}},
		{"read fails", member{leader: 1, linearizable: broken}, request{target: "/health", status: 503, want: sick("RANGE ERROR:etcdserver: request timed out")}},
		{"read fails, serializable", member{leader: 1, linearizable: broken}, request{target: "/health?serializable=true", status: 200, want: healthy}},
		{"local read fails", member{leader: 1, serializable: broken}, request{target: "/health?serializable=true", status: 503, want: sick("RANGE ERROR:etcdserver: request timed out")}},
		{"alarm", member{alarms: []pb.AlarmType{pb.AlarmType_NOSPACE}}, request{target: "/health", status: 503, want: sick("ALARM NOSPACE")}},
		{"corrupt", member{alarms: []pb.AlarmType{pb.AlarmType_CORRUPT}}, request{target: "/health", status: 503, want: sick("ALARM CORRUPT")}},
		{"unknown alarm", member{alarms: []pb.AlarmType{7}}, request{target: "/health", status: 503, want: sick("ALARM UNKNOWN")}},
		{"excluded", member{leader: 1, alarms: []pb.AlarmType{pb.AlarmType_NOSPACE}}, request{target: "/health?exclude=NOSPACE", status: 200, want: healthy}},
		{"one of two excluded", member{leader: 1, alarms: []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT}},
			request{target: "/health?exclude=NOSPACE&exclude=", status: 503, want: sick("ALARM CORRUPT")}},
		{"both excluded", member{leader: 1, alarms: []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT}},
			request{target: "/health?exclude=NOSPACE&exclude=CORRUPT", status: 200, want: healthy}},
		{"method", member{leader: 1}, request{method: "POST", target: "/health", status: 405, want: "Method Not Allowed\n", header: "Allow: GET"}},
		{"head", member{leader: 1}, request{method: "HEAD", target: "/health", status: 405, want: "Method Not Allowed\n"}},

		{"livez", member{}, request{target: "/livez", status: 200, want: "ok\n", header: "X-Content-Type-Options: nosniff"}},
		{"livez verbose", member{}, request{target: "/livez?verbose", status: 200, want: "[+]serializable_read ok\nok\n"}},
		{"livez ignores the cluster", member{linearizable: broken, alarms: []pb.AlarmType{pb.AlarmType_CORRUPT}}, request{target: "/livez", status: 200, want: "ok\n"}},
		{"livez fails", member{serializable: broken}, request{target: "/livez", status: 503, want: "[-]serializable_read failed: etcdserver: request timed out\n\n"}},
		{"readyz", member{}, request{target: "/readyz", status: 200, want: "ok\n"}},
		{"readyz verbose", member{}, request{target: "/readyz?verbose=1", status: 200,
			want: "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n"}},
		{"readyz fails", member{learner: true, linearizable: broken, alarms: []pb.AlarmType{pb.AlarmType_CORRUPT}}, request{target: "/readyz", status: 503,
			want: "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed out\n[-]non_learner failed: not supported for learner\n\n"}},
		{"readyz without room", member{noRoom: "a disk is full: all writes are refused until it has room"}, request{target: "/readyz", status: 503,
			want: "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\n[-]disk_space failed: a disk is full: all writes are refused until it has room\n\n"}},
		{"readyz without room, excluded", member{noRoom: "full"}, request{target: "/readyz?exclude=disk_space", status: 200, want: "ok\n"}},
		{"readyz room", member{}, request{target: "/readyz/disk_space?verbose", status: 200, want: "[+]disk_space ok\nok\n"}},
		{"livez without room", member{noRoom: "full"}, request{target: "/livez?verbose", status: 200, want: "[+]serializable_read ok\nok\n"}},
		{"readyz ignores NOSPACE", member{alarms: []pb.AlarmType{pb.AlarmType_NOSPACE}}, request{target: "/readyz", status: 200, want: "ok\n"}},
		{"readyz excluded", member{learner: true, linearizable: broken}, request{target: "/readyz?exclude=linearizable_read&exclude=non_learner&exclude=nope", status: 200, want: "ok\n"}},
		{"readyz one check", member{linearizable: broken}, request{target: "/readyz/linearizable_read", status: 503, want: "[-]linearizable_read failed: etcdserver: request timed out\n\n"}},
		{"readyz other check", member{linearizable: broken}, request{target: "/readyz/non_learner?verbose", status: 200, want: "[+]non_learner ok\nok\n"}},
		{"readyz no check", member{}, request{target: "/readyz/nope", status: 404, want: notFound}},
		{"livez method", member{}, request{method: "PUT", target: "/livez", status: 405, want: "Method Not Allowed\n", header: "Allow: GET"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.r.run(t, NewClientHandler(&tt.m, options()))
			tt.r.run(t, NewMetricsHandler(&tt.m, options()))
		})
	}
}

// value reads a counter or a gauge.
func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

func TestHealthSeries(t *testing.T) {
	success, failures := value(t, metrics.ServerHealthSuccess), value(t, metrics.ServerHealthFailures)
	failed := metrics.ServerHealthchecksTotal.WithLabelValues("readyz", "non_learner", "error")
	before := value(t, failed)
	h := NewClientHandler(&member{leader: 1, learner: true}, options())
	for _, target := range []string{"/health", "/health", "/readyz"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", target, nil))
	}
	NewClientHandler(&member{}, options()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/health", nil))
	if got := value(t, metrics.ServerHealthSuccess) - success; got != 2 {
		t.Errorf("etcd_server_health_success rose by %v, want 2", got)
	}
	if got := value(t, metrics.ServerHealthFailures) - failures; got != 1 {
		t.Errorf("etcd_server_health_failures rose by %v, want 1", got)
	}
	if got := value(t, failed) - before; got != 1 {
		t.Errorf("failed non_learner checks rose by %v, want 1", got)
	}
	if got := value(t, metrics.ServerHealthcheck.WithLabelValues("readyz", "non_learner")); got != 0 {
		t.Errorf("etcd_server_healthcheck of non_learner is %v", got)
	}
	if got := value(t, metrics.ServerHealthcheck.WithLabelValues("readyz", "data_corruption")); got != 1 {
		t.Errorf("etcd_server_healthcheck of data_corruption is %v", got)
	}
}

func TestClientPaths(t *testing.T) {
	version := func(cluster, storage string) string {
		return fmt.Sprintf(`{"etcdserver":"3.7.3","etcdcluster":%q,"storage":%q,"quorate":%q}`, cluster, storage, build.Version)
	}
	h := NewClientHandler(&member{cluster: "3.7.0"}, options())
	for _, r := range []request{
		{target: "/version", status: 200, want: version("3.7.0", "3.7.0"), header: "Content-Type: application/json"},
		{method: "POST", target: "/version", status: 405, want: "Method Not Allowed\n", header: "Allow: GET"},
		{target: "/", status: 404, want: notFound},
		{target: "/v2/keys", status: 404, want: notFound},
		{target: "/debug/pprof/", status: 404, want: notFound},
		{target: "/debug/requests", status: 404, want: notFound},
		{method: "DELETE", target: "/debug/vars", status: 405, want: "Method Not Allowed\n"},
		{method: "OPTIONS", target: "/health", status: 200, want: "", header: "Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE"},
	} {
		r.run(t, h)
	}
	request{target: "/version", status: 200, want: version("not_decided", "unknown")}.run(t, NewClientHandler(&member{}, options()))

	only := NewMetricsHandler(&member{}, options())
	for _, target := range []string{"/version", "/debug/vars", "/", "/members"} {
		request{target: target, status: 404, want: notFound}.run(t, only)
	}

	o := options()
	o.EnablePprof, o.EnableTrace = true, true
	o.Extra = map[string]http.Handler{"/v3/": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })}
	all := NewClientHandler(&member{}, o)
	request{target: "/v3/kv/range", status: 200, want: "/v3/kv/range"}.run(t, all)
	request{target: "/v3beta/kv/range", status: 200, want: "/v3/kv/range"}.run(t, all)
	for target, want := range map[string]string{
		"/debug/pprof/": "goroutine", "/debug/pprof/heap?debug=1": "heap profile", "/debug/pprof/cmdline": "", "/debug/requests": "/debug/requests", "/debug/events": "/debug/events",
	} {
		w := httptest.NewRecorder()
		all.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d, no %q", target, w.Code, want)
		}
	}
}

func TestVars(t *testing.T) {
	w := httptest.NewRecorder()
	NewClientHandler(&member{}, options()).ServeHTTP(w, httptest.NewRequest("GET", "/debug/vars", nil))
	var vars struct {
		Cmdline  []string       `json:"cmdline"`
		Limit    uint64         `json:"file_descriptor_limit"`
		Memstats map[string]any `json:"memstats"`
		Raft     struct {
			ID string `json:"id"`
		} `json:"raft.status"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &vars); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	if len(vars.Cmdline) == 0 || vars.Limit == 0 || vars.Memstats["Alloc"] == nil || vars.Raft.ID != "1" {
		t.Errorf("got %+v", vars)
	}
}

func TestMetrics(t *testing.T) {
	SetInfo(0x8e9e05c52164694d, []Feature{{Name: "AllAlpha", Stage: "ALPHA"}, {Name: "FastLeaseKeepAlive", Stage: "BETA", Enabled: true}})
	for _, h := range []http.Handler{NewClientHandler(&member{}, options()), NewMetricsHandler(&member{}, options())} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		body := w.Body.String()
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
			t.Errorf("%d %s", w.Code, w.Header().Get("Content-Type"))
		}
		for _, want := range []string{
			`etcd_server_version{server_version="3.7.3"} 1`,
			`etcd_server_id{server_id="8e9e05c52164694d"} 1`,
			`etcd_server_go_version{server_go_version="go1.`,
			`etcd_server_feature_enabled{name="FastLeaseKeepAlive",stage="BETA"} 1`,
			`etcd_server_feature_enabled{name="AllAlpha",stage="ALPHA"} 0`,
			"etcd_server_leader_changes_seen_total 0",
			"# TYPE os_fd_limit gauge", "# TYPE os_fd_used gauge",
			"process_resident_memory_bytes ", "go_goroutines ", "process_start_time_seconds ",
			"promhttp_metric_handler_requests_in_flight 1", `promhttp_metric_handler_requests_total{code="200"}`,
		} {
			if !strings.Contains(body, want) {
				t.Errorf("no %s", want)
			}
		}
		if strings.Contains(body, "os_fd_used 0\n") || strings.Contains(body, "os_fd_limit 0\n") {
			t.Errorf("file descriptors are not counted")
		}
	}
}

func TestAccess(t *testing.T) {
	o := options()
	o.HostWhitelist, o.CORS = []string{"good"}, []string{"http://web:1"}
	h := NewClientHandler(&member{leader: 1}, o)
	healthy := `{"health":"true","reason":""}`
	for _, r := range []request{
		{target: "/health", send: "Host: good:2379", status: 200, want: healthy},
		{target: "/health", send: "Host: good", status: 200, want: healthy},
		{target: "/health", send: "Host: evil:2379", status: 421, want: misdirected("evil") + "\n"},
	} {
		r.run(t, h)
	}
	for origin, want := range map[string]string{"http://web:1": "http://web:1", "http://evil:1": "", "": ""} {
		req := httptest.NewRequest("GET", "/health", nil)
		req.Host = "good"
		req.Header.Set("Origin", origin)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if got := w.Header().Get("Access-Control-Allow-Origin"); got != want {
			t.Errorf("origin %q is allowed as %q, want %q", origin, got, want)
		}
	}
}

// TestNamedClients checks that the gateway rejects only certificates that name a user, and
// only while authentication is enabled.
func TestNamedClients(t *testing.T) {
	chain := func(name string) *tls.ConnectionState {
		return &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: name}}}}}
	}
	for _, tt := range []struct {
		path, name string
		auth       bool
		want       int
	}{
		{"/v3/kv/range", "root", true, 400},
		{"/v3beta/kv/range", "root", true, 400},
		{"/v3/kv/range", "", true, 200},
		{"/v3/kv/range", "root", false, 200},
		{"/health", "root", true, 200},
	} {
		o := options()
		o.RefuseNamed = func() bool { return tt.auth }
		o.Extra = map[string]http.Handler{"/v3/": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
		req := httptest.NewRequest("GET", tt.path, nil)
		req.TLS = chain(tt.name)
		w := httptest.NewRecorder()
		NewClientHandler(&member{leader: 1}, o).ServeHTTP(w, req)
		if w.Code != tt.want {
			t.Errorf("%s as %q with auth %v: got %d, want %d", tt.path, tt.name, tt.auth, w.Code, tt.want)
		}
	}
}

// With the v2 API, /health reads only the v2 store, even with serializable.
func TestHealthWithV2(t *testing.T) {
	broken := errors.New("etcdserver: request timed out")
	for _, tt := range []struct {
		m   member
		v2  error
		r   request
		why string
	}{
		{member{leader: 1, linearizable: broken}, nil, request{target: "/health", status: 200, want: `{"health":"true","reason":""}`}, "healthy"},
		{member{leader: 1}, broken, request{target: "/health", status: 503, want: `{"health":"false","reason":"QGET ERROR:etcdserver: request timed out"}` + "\n"}, "the read fails"},
		{member{}, broken, request{target: "/health?serializable=true", status: 503, want: `{"health":"false","reason":"QGET ERROR:etcdserver: request timed out"}` + "\n"}, "serializable"},
		{member{}, nil, request{target: "/health", status: 503, want: `{"health":"false","reason":"RAFT NO LEADER"}` + "\n"}, "no leader"},
		{member{}, broken, request{target: "/readyz", status: 200, want: "ok\n"}, "probes ask as ever"},
	} {
		o := options()
		o.CheckV2 = func(ctx context.Context) error {
			if _, ok := ctx.Deadline(); !ok {
				return errors.New("read without an end")
			}
			return tt.v2
		}
		t.Run(tt.why, func(t *testing.T) { tt.r.run(t, NewClientHandler(&tt.m, o)) })
	}
}
