package monitoring

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/harness"
)

var (
	etcd     = flag.String("etcd", "../../bin/etcd", "server under test")
	promBin  = flag.String("prometheus", "../bin/prometheus", "a real Prometheus")
	promtool = flag.String("promtool", "../bin/promtool", "its tool")
	files    = "../../deploy/monitoring"
)

func TestMain(m *testing.M) {
	flag.Parse()
	for _, p := range []*string{etcd, promBin, promtool, &files} {
		abs, err := filepath.Abs(*p)
		if err == nil {
			_, err = os.Stat(abs)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%v (make monitoring builds what is needed)\n", err)
			os.Exit(1)
		}
		*p = abs
	}
	os.Exit(m.Run())
}

func TestPromtool(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", "etcd.rules.yml"},
		{"check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"},
		{"test", "rules", "etcd.rules.test.yml"},
	} {
		cmd := exec.Command(*promtool, args...)
		cmd.Dir = files
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Each alert, at each of its severities, has a test in which it fires and one in which it does not.
func TestAlertsAreTested(t *testing.T) {
	t.Parallel()
	var rules ruleFile
	var tests ruleTests
	if err := errors.Join(readYAML(filepath.Join(files, "etcd.rules.yml"), &rules), readYAML(filepath.Join(files, "etcd.rules.test.yml"), &tests)); err != nil {
		t.Fatal(err)
	}
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, a := range test.AlertRuleTests {
			for _, e := range a.Expected {
				fires[a.AlertName+" "+e.Labels["severity"]] = true
			}
			quiet[a.AlertName] = quiet[a.AlertName] || len(a.Expected) == 0
		}
	}
	alerts := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts++
			if s := r.Labels["severity"]; !fires[r.Alert+" "+s] || !quiet[r.Alert] {
				t.Errorf("%s (%s): there is a test in which it fires: %v, and one in which it does not: %v", r.Alert, s, fires[r.Alert+" "+s], quiet[r.Alert])
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s has no summary or no description", r.Alert)
			}
		}
	}
	if alerts == 0 {
		t.Error("no alerts")
	}
}

// Each alert has a section in the document, in both languages.
func TestRunbook(t *testing.T) {
	t.Parallel()
	var rules ruleFile
	if err := readYAML(filepath.Join(files, "etcd.rules.yml"), &rules); err != nil {
		t.Fatal(err)
	}
	for _, doc := range []string{"monitoring.md", "monitoring.zh-CN.md"} {
		b, err := os.ReadFile(filepath.Join(files, "../../docs", doc))
		if err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, line := range strings.Split(string(b), "\n") {
			if name, ok := strings.CutPrefix(line, "### "); ok && (strings.HasPrefix(name, "etcd") || strings.HasPrefix(name, "quorate")) {
				got = append(got, name)
			}
		}
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if r.Alert == "" {
					continue
				}
				want = append(want, r.Alert)
				if link := "docs/monitoring.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != link {
					t.Errorf("%s: runbook %q, want %q", r.Alert, r.Annotations["runbook"], link)
				}
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if want = slices.Compact(want); !slices.Equal(got, want) {
			t.Errorf("%s has sections for\n%q\nand not for the alerts\n%q", doc, got, want)
		}
	}
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	d, err := readDashboard(filepath.Join(files, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" {
		t.Error("no title, or no uid")
	}
	ids, titles := map[int]bool{}, map[string]bool{}
	for i, p := range d.Panels {
		if ids[p.ID] || titles[p.Title] || p.Title == "" {
			t.Errorf("panel %d, %q: number and title must be its own", p.ID, p.Title)
		}
		ids[p.ID], titles[p.Title] = true, true
		if g := p.GridPos; g.X < 0 || g.W < 1 || g.X+g.W > 24 || g.H < 1 {
			t.Errorf("%s lies outside of the grid: %+v", p.Title, g)
		}
		for _, o := range d.Panels[:i] {
			a, b := p.GridPos, o.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies on %s", p.Title, o.Title)
			}
		}
		if p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("%s shows nothing, or does not say what", p.Title)
		}
	}
}

// scene is a cluster under traffic, scraped by a Prometheus.
type scene struct {
	*prometheus
	cluster *harness.Cluster
	leader  int
	traffic *traffic
	end     context.CancelFunc // of the traffic
	ended   chan error
}

var memberFlags = []string{"--metrics=extensive", "--enable-v2", "--snapshot-count=50", "--snapshot-catchup-entries=5"}

func newScene(t *testing.T) *scene {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	dir := t.TempDir()
	s := &scene{ended: make(chan error, 1)}
	var err error
	if s.cluster, err = harness.StartCluster(ctx, dir, []string{*etcd, *etcd, *etcd}, memberFlags...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.cluster.Kill)
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		t.Fatal(err)
	}
	s.prometheus = startPrometheus(t, *promBin, filepath.Join(files, "etcd.rules.yml"), append(s.cluster.ClientAddrs(), addrs[0]))

	// The client talks to the leader, which none of the following faults stops.
	eventually(t, "a member leads", func() error {
		for i, m := range s.cluster.Members {
			c, err := newTraffic(m.ClientAddr())
			if err != nil {
				return err
			}
			st, err := c.maint.Status(ctx, &pb.StatusRequest{})
			if err == nil && st.GetLeader() == st.GetHeader().GetMemberId() {
				s.leader, s.traffic = i, c
				return nil
			}
			c.conn.Close()
		}
		return errors.New("none does")
	})
	t.Cleanup(func() { s.traffic.conn.Close() })
	if err := s.traffic.watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	// An alarm that is over, so that its series exists.
	for _, action := range []pb.AlarmRequest_AlarmAction{pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE} {
		if err := s.traffic.alarm(ctx, action, pb.AlarmType_CORRUPT, pb.AlarmType_NOSPACE); err != nil {
			t.Fatal(err)
		}
	}
	running, end := context.WithCancel(t.Context())
	s.end = end
	go func() { s.ended <- s.traffic.run(running) }()
	t.Cleanup(end)
	s.join(ctx, t, dir, addrs)
	return s
}

// join adds a learner once the log is so short that it needs a snapshot.
func (s *scene) join(ctx context.Context, t *testing.T, dir string, addrs []string) {
	t.Helper()
	eventually(t, "the leader has shortened its log", func() error {
		b, err := os.ReadFile(s.cluster.Members[s.leader].LogPath())
		if err == nil && !strings.Contains(string(b), "compacted Raft logs") {
			err = errors.New("no such line in its log")
		}
		return err
	})
	var r *pb.MemberAddResponse
	eventually(t, "a learner is added", func() (err error) { // refused until the members have been connected for a while
		r, err = pb.NewClusterClient(s.traffic.conn).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://" + addrs[1]}, IsLearner: true})
		return err
	})
	initial := []string{"learner=http://" + addrs[1]}
	for _, m := range r.GetMembers() {
		if m.GetID() != r.GetMember().GetID() {
			initial = append(initial, m.GetName()+"="+m.GetPeerURLs()[0])
		}
	}
	m, err := harness.Start(harness.Config{Binary: *etcd, Name: "learner", Dir: filepath.Join(dir, "learner"), ClientAddr: addrs[0], PeerAddr: addrs[1],
		InitialCluster: strings.Join(initial, ","), ClusterState: "existing", Args: memberFlags})
	if err != nil {
		t.Fatal(err)
	}
	s.cluster.Members = append(s.cluster.Members, m)
}

// queries lists all queries in the files: those that must return data, and those that need not.
func (s *scene) queries(ctx context.Context, t *testing.T) (shown, silent []query) {
	t.Helper()
	rules, err := s.rules(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		q := query{r.Type + " " + r.Name, r.Query}
		if r.Type == "recording" {
			shown = append(shown, q)
		} else {
			silent = append(silent, q)
		}
	}
	d, err := readDashboard(filepath.Join(files, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{"__rate_interval": "10s"}
	for _, v := range d.Templating.List {
		values[v.Name] = ".*"
	}
	add := func(to *[]query, where, expr string) {
		expanded, err := expand(expr, values)
		if err != nil {
			t.Errorf("%s: %v", where, err)
		}
		*to = append(*to, query{where, expanded})
	}
	for _, p := range panels(d.Panels) {
		for _, target := range p.Targets {
			add(&shown, "panel "+p.Title, target.Expr)
		}
	}
	for _, v := range d.Templating.List {
		if _, args, ok := strings.Cut(v.Definition, "label_values("); ok {
			add(&shown, "variable "+v.Name, args[:strings.LastIndex(args, ",")])
		}
	}
	for _, a := range d.Annotations.List {
		add(&silent, "annotation "+a.Name, a.Expr)
	}
	for _, expr := range known {
		shown = append(shown, query{"well-known", expr})
	}
	return shown, silent
}

// gaps lists what the queries name and no series has, and which of those that must return data do not.
func (s *scene) gaps(ctx context.Context, t *testing.T, shown, silent []query) (gaps []string) {
	t.Helper()
	exists := map[string]bool{}
	for i, q := range append(slices.Clone(shown), silent...) {
		named, err := s.selectors(ctx, q.expr)
		if err != nil {
			t.Fatalf("%s: %v", q.where, err)
		}
		if len(named) == 0 {
			t.Errorf("%s: no series in %s", q.where, q.expr)
		}
		for _, n := range named {
			if strings.Contains(n, `__name__="ALERTS"`) {
				continue
			}
			if !exists[n] {
				if exists[n], err = s.exists(ctx, n); err != nil {
					t.Fatalf("%s: %v", q.where, err)
				}
			}
			if !exists[n] {
				gaps = append(gaps, q.where+": no series "+n)
			}
		}
		if i >= len(shown) {
			continue
		}
		if n, err := s.results(ctx, q.expr); err != nil {
			t.Fatalf("%s: %v", q.where, err)
		} else if n == 0 {
			gaps = append(gaps, q.where+": shows nothing: "+q.expr)
		}
	}
	return gaps
}

// active maps the alerts to their states, and checks that their texts are complete.
func (s *scene) active(ctx context.Context, t *testing.T) map[string]string {
	t.Helper()
	all, err := s.alerts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	for _, a := range all {
		name := a.Labels["alertname"]
		if states[name] != "firing" {
			states[name] = a.State
		}
		for _, text := range a.Annotations {
			if strings.Contains(text, "<error") || strings.Contains(text, "%!") || strings.Contains(text, "<no value>") {
				t.Errorf("%s says %q", name, text)
			}
		}
	}
	return states
}

func (s *scene) await(ctx context.Context, t *testing.T, state string, names ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q are %s", names, state), func() error {
		active := s.active(ctx, t)
		for _, n := range names {
			if active[n] != state {
				return fmt.Errorf("%s is %q; all: %v", n, active[n], active)
			}
		}
		return nil
	})
}

func TestBeforePrometheus(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	ctx := t.Context()
	shown, silent := s.queries(ctx, t)
	eventually(t, "the learner has got a snapshot", func() error {
		if n, err := s.results(ctx, `etcd_network_snapshot_receive_success > 0`); err != nil || n > 0 {
			return err
		}
		return errors.New("none was received")
	})
	if firing := s.active(ctx, t); slices.Contains(values(firing), "firing") {
		t.Errorf("alerts fire while all is well: %v", firing)
	}

	// A member that is down: only now are there failures to reach it.
	down := (s.leader + 1) % 3
	if err := s.cluster.Members[down].Kill(); err != nil {
		t.Fatal(err)
	}
	s.await(ctx, t, "pending", "etcdMembersDown")
	var gaps []string
	eventually(t, "all that the files name is there", func() error {
		select {
		case err := <-s.ended:
			t.Fatalf("the traffic ended: %v", err)
		default:
		}
		health, err := client.Get(s.traffic.url + "/health")
		if err != nil {
			return err
		}
		health.Body.Close()
		if health.StatusCode != http.StatusOK {
			return fmt.Errorf("health: %s", health.Status)
		}
		if gaps = s.gaps(ctx, t, shown, silent); len(gaps) > 0 {
			return fmt.Errorf("\n%s", strings.Join(gaps, "\n"))
		}
		return nil
	})
	rules, err := s.rules(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if r.Health != "ok" || r.LastError != "" {
			t.Errorf("rule %s: %s: %s", r.Name, r.Health, r.LastError)
		}
	}
	t.Logf("%d queries that show something, %d others, %d rules", len(shown), len(silent), len(rules))

	// The traffic stops, as alarms would stop it.
	s.end()
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
	if err := s.traffic.alarm(ctx, pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT, pb.AlarmType_NOSPACE); err != nil {
		t.Fatal(err)
	}
	s.await(ctx, t, "firing", "quorateCorruptionAlarm", "quorateSpaceAlarm")

	// A restart does not clear an alarm, and must not clear the alert.
	if err := s.cluster.Members[down].Restart(); err != nil {
		t.Fatal(err)
	}
	s.awaitResult(ctx, t, fmt.Sprintf(`up{instance=%q} == 1`, s.cluster.Members[down].ClientAddr()))
	leader := s.cluster.Members[s.leader]
	if err := errors.Join(leader.Kill(), leader.Restart()); err != nil {
		t.Fatal(err)
	}
	s.awaitResult(ctx, t, fmt.Sprintf(`count by (instance) (etcd_debugging_server_alarms{instance=%q} == 1) == 2
		and on (instance) changes(process_start_time_seconds[2m]) > 0`, leader.ClientAddr()))

	// Without a quorum, the remaining member knows no leader.
	for i, m := range s.cluster.Members[:3] {
		if i != s.leader {
			if err := m.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.await(ctx, t, "pending", "etcdInsufficientMembers", "etcdNoLeader")
}

func (s *scene) awaitResult(ctx context.Context, t *testing.T, expr string) {
	t.Helper()
	eventually(t, expr, func() error {
		n, err := s.results(ctx, expr)
		if err == nil && n == 0 {
			err = errors.New("nothing")
		}
		return err
	})
}

func values(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}
