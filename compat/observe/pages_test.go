package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/harness"
)

// page is one request and how much of the answers is compared.
type page struct {
	method, path string
	body         func(string) string // makes answers comparable; nil if nothing is needed
}

// fetch returns the answer as text: status line, headers in order, body.
func fetch(ctx context.Context, base string, p page) (string, error) {
	req, err := http.NewRequestWithContext(ctx, p.method, base+p.path, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := web.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", resp.Status)
	resp.Header.Del("Date")
	if strings.HasPrefix(p.path, "/metrics") {
		// A newer Prometheus client tells caches that it negotiates the format.
		resp.Header.Del("Vary")
	}
	if p.body != nil {
		resp.Header.Del("Content-Length")
	}
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		fmt.Fprintf(&b, "%s: %q\n", name, resp.Header[name])
	}
	text := string(body)
	if p.body != nil {
		text = p.body(text)
	}
	fmt.Fprintf(&b, "\n%s", text)
	return b.String(), nil
}

// anyBody leaves bodies out of the comparison.
func anyBody(string) string { return "" }

// sortedLines is for reports whose order real etcd randomises per process.
func sortedLines(s string) string {
	return strings.Join(slices.Sorted(strings.Lines(s)), "")
}

// withoutOwnVersion drops the one key that the server under test adds to /version.
func withoutOwnVersion(s string) string {
	before, rest, ok := strings.Cut(s, `,"quorate":"`)
	if !ok {
		return s
	}
	_, after, _ := strings.Cut(rest, `"`)
	return before + after
}

// keysOf lists the keys of a JSON object, and of the object under raft.status, whose values are
// those of one process.
func keysOf(s string) string {
	var top map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s), &top); err != nil {
		return err.Error() + "\n" + s
	}
	var raft map[string]json.RawMessage
	if err := json.Unmarshal(top["raft.status"], &raft); err != nil {
		return err.Error() + "\n" + s
	}
	return fmt.Sprintf("%q\nraft.status %q\n", slices.Sorted(maps.Keys(top)), slices.Sorted(maps.Keys(raft)))
}

// probes are the requests that probes and load balancers send.
var probes = []page{
	{"GET", "/health", nil},
	{"GET", "/health?serializable=true", nil},
	{"GET", "/health?serializable=false", nil},
	{"GET", "/health?serializable=x", nil},
	{"GET", "/health?exclude=NOSPACE", nil},
	{"GET", "/health?exclude=CORRUPT", nil},
	{"GET", "/health?exclude=NOSPACE&exclude=CORRUPT", nil},
	{"GET", "/health?exclude=", nil},
	{"GET", "/health?exclude=nospace", nil},
	{"GET", "/livez", nil},
	{"GET", "/livez?verbose", sortedLines},
	{"GET", "/livez?verbose&exclude=serializable_read", nil},
	{"GET", "/livez/serializable_read", nil},
	{"GET", "/livez/serializable_read?verbose", nil},
	{"GET", "/livez/linearizable_read", nil},
	{"GET", "/readyz", sortedLines},
	{"GET", "/readyz?verbose", sortedLines},
	{"GET", "/readyz?verbose=false", sortedLines},
	{"GET", "/readyz?exclude=linearizable_read&verbose", sortedLines},
	{"GET", "/readyz?exclude=linearizable_read&exclude=data_corruption&verbose", sortedLines},
	{"GET", "/readyz?exclude=unknown&verbose", sortedLines},
	{"GET", "/readyz?exclude=&verbose", sortedLines},
	{"GET", "/readyz/data_corruption", nil},
	{"GET", "/readyz/serializable_read", nil},
	{"GET", "/readyz/linearizable_read?verbose", nil},
	{"GET", "/readyz/non_learner?verbose", nil},
	{"GET", "/readyz/non_learner?exclude=non_learner&verbose", nil},
	{"GET", "/readyz/unknown", nil},
	{"GET", "/readyz/", nil},
	{"HEAD", "/health", nil},
	{"POST", "/health", nil},
	{"PUT", "/livez", nil},
	{"DELETE", "/readyz", nil},
	{"POST", "/readyz/non_learner", nil},
	{"OPTIONS", "/health", nil},
}

var clientPages = []page{
	{"GET", "/version", withoutOwnVersion},
	{"GET", "/version?x=1", withoutOwnVersion},
	{"HEAD", "/version", anyBody},
	{"POST", "/version", nil},
	{"GET", "/version/", nil},
	{"GET", "/debug/vars", keysOf},
	{"POST", "/debug/vars", nil},
	{"GET", "/debug/requests", nil},
	{"GET", "/debug/events", nil},
	{"GET", "/metrics", anyBody},
	{"HEAD", "/metrics", anyBody},
	{"POST", "/metrics", anyBody},
	{"GET", "/metrics/", nil},
	{"GET", "/", nil},
	{"POST", "/", nil},
	{"GET", "/unknown", nil},
	{"GET", "/health/", nil},
	{"GET", "//health", nil},
	{"GET", "/members", nil},
	{"GET", "/v2/keys", nil},
	{"GET", "/config/local/log", nil},
	{"OPTIONS", "/version", nil},
}

var profiles = []page{
	{"GET", "/debug/pprof/", anyBody},
	{"GET", "/debug/pprof", anyBody},
	{"GET", "/debug/pprof/cmdline", anyBody},
	{"GET", "/debug/pprof/symbol", anyBody},
	{"GET", "/debug/pprof/heap", anyBody},
	{"GET", "/debug/pprof/goroutine?debug=1", anyBody},
	{"GET", "/debug/pprof/mutex", anyBody},
	{"GET", "/debug/pprof/block", anyBody},
	{"GET", "/debug/pprof/unknown", nil},
	{"GET", "/debug/pprof/trace?seconds=0.01", anyBody},
	{"GET", "/debug/pprof/profile?seconds=1", anyBody},
}

// refused are pages that a server does not have in this configuration.
var refused = []page{
	{"GET", "/debug/pprof/", nil},
	{"GET", "/debug/pprof/heap", nil},
	{"GET", "/debug/vars", nil},
	{"GET", "/version", nil},
	{"GET", "/", nil},
}

func comparePages(t *testing.T, base [2]string, pages []page) {
	t.Helper()
	for _, p := range pages {
		var got [2]string
		var errs [2]error
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() { got[i], errs[i] = fetch(t.Context(), base[i], p) })
		}
		wg.Wait()
		for i, err := range errs {
			if err != nil {
				t.Fatalf("%s %s of server %c: %v", p.method, p.path, 'a'+i, err)
			}
		}
		if got[0] != got[1] {
			t.Errorf("%s %s: got\n%s\nwant\n%s", p.method, p.path, got[1], got[0])
		}
	}
}

// single starts one member of each binary. Both advertise the same URLs, so their ids are equal.
func single(t *testing.T, args ...string) (members [2]*harness.Member, metricsURL [2]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	dir := t.TempDir()
	bins := bothBinaries(t)
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		t.Fatal(err)
	}
	var errs [2]error
	var wg sync.WaitGroup
	for i, bin := range bins {
		metricsURL[i] = "http://" + addrs[i]
		wg.Go(func() {
			members[i], errs[i] = harness.StartSingle(ctx, harness.Config{
				Binary: bin, Dir: filepath.Join(dir, string(rune('a'+i))),
				AdvertiseClientURL: "http://127.0.0.1:2379", AdvertisePeerURL: "http://127.0.0.1:2380",
				Args: append([]string{"--listen-metrics-urls=" + metricsURL[i], "--log-level=error"}, args...),
			})
		})
	}
	wg.Wait()
	for i, m := range members {
		if errs[i] != nil {
			t.Fatalf("server %c: %v", 'a'+i, errs[i])
		}
		t.Cleanup(func() { _ = m.Kill() })
		if err := untilStored(ctx, m.ClientURL()); err != nil {
			t.Fatalf("server %c: %v", 'a'+i, err)
		}
	}
	return members, metricsURL
}

// untilStored waits until the member has written the version of its data, which real etcd does shortly after it
// serves.
func untilStored(ctx context.Context, base string) error {
	for {
		text, err := fetch(ctx, base, page{"GET", "/version", nil})
		if err != nil || strings.Contains(text, `"storage":"3.7.0"`) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("storage version stays undecided: %w: %s", ctx.Err(), text)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestPagesAtDebug compares the pages that log level debug opens.
func TestPagesAtDebug(t *testing.T) {
	t.Parallel()
	members, _ := single(t, "--log-level=debug")
	// What is traced depends on the version of gRPC inside.
	comparePages(t, [2]string{members[0].ClientURL(), members[1].ClientURL()}, slices.Concat(profiles[:6], []page{
		{"GET", "/debug/requests", anyBody}, {"GET", "/debug/events", anyBody}, {"POST", "/debug/requests", anyBody},
	}))
}

func TestPages(t *testing.T) {
	t.Parallel()
	members, metricsURL := single(t, "--enable-pprof")
	clientURL := [2]string{members[0].ClientURL(), members[1].ClientURL()}
	t.Run("client", func(t *testing.T) {
		comparePages(t, clientURL, slices.Concat(probes, clientPages, profiles))
	})
	t.Run("metrics", func(t *testing.T) {
		comparePages(t, metricsURL, slices.Concat(probes, clientPages[9:], refused))
	})
	for _, kind := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		t.Run(kind.String(), func(t *testing.T) {
			for _, action := range []pb.AlarmRequest_AlarmAction{pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE} {
				for _, m := range members {
					setAlarm(t, m, action, kind)
				}
				comparePages(t, clientURL, probes)
			}
		})
	}
}

func setAlarm(t *testing.T, m *harness.Member, action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) {
	t.Helper()
	c, err := dial(m.ClientAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	st, err := c.maint.Status(t.Context(), &pb.StatusRequest{})
	if err == nil {
		_, err = c.maint.Alarm(t.Context(), &pb.AlarmRequest{Action: action, Alarm: kind, MemberID: st.GetHeader().GetMemberId()})
	}
	if err != nil {
		t.Fatalf("%v %v: %v", action, kind, err)
	}
}

// Without --enable-pprof there are no profiles.
func TestPagesWithoutProfiles(t *testing.T) {
	t.Parallel()
	members, _ := single(t)
	comparePages(t, [2]string{members[0].ClientURL(), members[1].ClientURL()}, refused[:2])
}

// A member whose cluster has lost its majority.
func TestPagesWithoutLeader(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	dir := t.TempDir()
	var base [2]string
	var errs [2]error
	var wg sync.WaitGroup
	for i, bin := range bothBinaries(t) {
		wg.Go(func() {
			c, err := harness.StartCluster(ctx, filepath.Join(dir, string(rune('a'+i))), []string{bin, bin, bin}, "--log-level=fatal")
			if err != nil {
				errs[i] = err
				return
			}
			t.Cleanup(c.Kill)
			base[i] = c.Members[0].ClientURL()
			for _, m := range c.Members[1:] {
				_ = m.Kill()
			}
			errs[i] = untilLeaderless(ctx, base[i])
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("server %c: %v", 'a'+i, err)
		}
	}
	for _, p := range []page{
		{"GET", "/health", nil},
		{"GET", "/health?exclude=NOSPACE", nil},
		{"GET", "/health?serializable=true", nil},
		{"GET", "/livez?verbose", nil},
		{"GET", "/readyz?verbose&exclude=linearizable_read", sortedLines},
		{"GET", "/readyz/data_corruption", nil},
		{"GET", "/readyz", sortedLines}, // takes the whole request timeout
	} {
		comparePages(t, base, []page{p})
	}
}

func untilLeaderless(ctx context.Context, base string) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := fetchMetrics(ctx, base)
		if err != nil {
			return err
		}
		if s.values()["etcd_server_has_leader"] == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("member still has a leader: %w", ctx.Err())
		case <-tick.C:
		}
	}
}
