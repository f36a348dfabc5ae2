package ctl

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// checking returns a session with the fake server, and its output.
func checking(t *testing.T) (st *stage, s checker, out, errs *bytes.Buffer) {
	t.Helper()
	st = newStage(t)
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	a := &app{Process: Process{Stdin: strings.NewReader(""), Stdout: out, Stderr: errs,
		Env: []string{"ETCDCTL_ENDPOINTS=" + st.leader.addr}}}
	a.lg = newLogger(errs, zapcore.InfoLevel)
	root := a.rootCommand()
	cmd, _, err := root.Find([]string{"check", "perf"})
	if err != nil {
		t.Fatal(err)
	}
	if s.session, err = a.session(cmd); err != nil {
		t.Fatal(err)
	}
	return st, s, out, errs
}

func TestCheckPerf(t *testing.T) {
	st, s, out, errs := checking(t)
	f := &checkFlags{prefix: "/perf/", autoCompact: true, autoDefrag: true}
	// Any machine reaches this rate, but the slowest write may take long.
	err := s.perf(f, perfLoad{limit: 20, clients: 3, duration: time.Second})
	if err != nil && !strings.Contains(out.String(), "too ") {
		t.Errorf("check perf: %v; %s", err, out)
	}
	got := out.String()
	want := "Compacting with revision 42\nCompacted with revision 42\n" +
		"Defragmenting \"" + st.leader.addr + "\"\nDefragmented \"" + st.leader.addr + "\"\n"
	if !strings.HasPrefix(got, want) {
		t.Errorf("cleaning up prints\n%swant\n%s", got, want)
	}
	if n := strings.Count(got, "\n"); n != 8 {
		t.Errorf("got %d lines, want 4 of cleaning up, 3 criteria and the verdict:\n%s", n, got)
	}
	if !strings.Contains(errs.String(), "1 / 1 [") {
		t.Errorf("progress bar %q, want it to end at 1 / 1", errs)
	}
	puts, deletes := 0, 0
	for _, r := range st.log.take() {
		switch {
		case strings.HasPrefix(r, "KV/Put "):
			puts++
		case strings.HasPrefix(r, "KV/DeleteRange "):
			deletes++
		}
	}
	if puts < 1 || puts > 21 || deletes != 1 {
		t.Errorf("%d puts and %d deletes, want about 20 and 1", puts, deletes)
	}
}

func TestCheckPerfVerdicts(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		name  string
		stats loadStats
		want  []string
	}{
		{"good", loadStats{took: []time.Duration{10 * ms, 10 * ms, 10 * ms, 10 * ms}, slowest: 10 * ms, total: time.Second},
			[]string{"PASS: Throughput is 5 writes/s", "PASS: Slowest request took 0.010000s", "PASS: Stddev is 0.000000s"}},
		{"slow", loadStats{took: []time.Duration{10 * ms, 510 * ms, 10 * ms, 10 * ms}, slowest: 510 * ms, total: 2 * time.Second},
			[]string{"FAIL: Throughput too low: 3 writes/s", "Slowest request took too long: 0.510000s", "Stddev too high: 0.216506s"}},
		{"errors", loadStats{took: []time.Duration{10 * ms}, slowest: 10 * ms, total: time.Second / 4, errorText: map[string]int{"b": 1, "a": 2}},
			[]string{"FAIL: too many errors", "FAIL: ERROR(a) -> 2", "FAIL: ERROR(b) -> 1",
				"PASS: Throughput is 5 writes/s", "PASS: Slowest request took 0.010000s", "PASS: Stddev is 0.000000s"}},
	} {
		var got []string
		for _, v := range c.stats.perfVerdicts(4) {
			got = append(got, v.text)
			if v.ok != strings.HasPrefix(v.text, "PASS") {
				t.Errorf("%s: ok is %v for %q", c.name, v.ok, v.text)
			}
		}
		if g, w := strings.Join(got, "\n"), strings.Join(c.want, "\n"); g != w {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, g, w)
		}
	}
}

func TestLoadCountsErrors(t *testing.T) {
	_, s, _, _ := checking(t)
	clients, err := s.clients(2)
	defer closeAll(clients)
	if err != nil {
		t.Fatal(err)
	}
	st := runLoad(clients, nil, func(yield func(clientv3.Op) bool) {
		for _, key := range []string{"a", "", "b", ""} {
			if !yield(clientv3.OpPut(key, "v")) {
				return
			}
		}
	})
	if len(st.took) != 2 || st.errorText["etcdserver: key is not provided"] != 2 || len(st.errorText) != 1 {
		t.Errorf("%d writes and errors %v, want 2 and twice that there is no key", len(st.took), st.errorText)
	}
}

func TestMetric(t *testing.T) {
	page := "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 5.24288e+07\nbad x\n"
	if got, err := metric(page, "process_resident_memory_bytes"); err != nil || got != 50<<20 {
		t.Errorf("metric = %v, %v; want %d", got, err, 50<<20)
	}
	for name, want := range map[string]string{"other": "could not find: other", "bad": "parse error: "} {
		if _, err := metric(page, name); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("metric %s: %v, want %s", name, err, want)
		}
	}
}

func TestDatascaleNeedsMetrics(t *testing.T) {
	_, s, out, _ := checking(t)
	err := s.datascale(&checkFlags{prefix: "/scale/"}, scaleLoad{limit: 1, kvSize: 1, clients: 1})
	if err == nil || !strings.Contains(out.String(), "\nFAIL: Could not read process_resident_memory_bytes before the put operations.\n") {
		t.Errorf("datascale against a server without metrics: %v, %q", err, out)
	}
}

// The number is printed at every tick, and only then.
func TestMirrorReports(t *testing.T) {
	st, s, _, _ := checking(t)
	src, err := s.client(st.leader.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := s.client(st.other.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	st.leader.end.Store(newBeacon())
	m := &mirror{src: src, dst: dst, prefix: "foo", destPrefix: "copy", maxTxnOps: 1}
	tick := make(chan time.Time)
	reports := make(chan int64)
	done := make(chan error, 1)
	go func() { done <- m.run(tick, func(n int64) { reports <- n }) }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for n := int64(-1); n != 4; { // two keys, then two changes
		select {
		case tick <- time.Time{}:
			n = <-reports
		case err := <-done:
			t.Fatalf("mirror ended: %v", err)
		case <-ctx.Done():
			t.Fatal("the mirror does not copy")
		}
	}
	st.leader.end.Load().send()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "no leader") && !strings.Contains(err.Error(), "canceled") {
		t.Errorf("the mirror ends with %v, want the reason", err)
	}
}

func TestMirrorTransactions(t *testing.T) {
	st, s, _, _ := checking(t)
	dst, err := s.client()
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	at := func(key string, rev int64) *clientv3.Event { return &clientv3.Event{Kv: kv(key, "v", rev, rev, 1, 0)} }
	m := &mirror{dst: dst, prefix: "a/", destPrefix: "b/", maxTxnOps: 2}
	if err := m.copyChanges(t.Context(), []*clientv3.Event{at("a/1", 5), at("a/2", 6), at("a/3", 6), at("a/4", 6)}); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, r := range st.log.take() {
		sizes = append(sizes, strings.Count(r, "RequestPut"))
	}
	// One revision is one transaction, if it fits.
	if len(sizes) != 3 || sizes[0] != 1 || sizes[1] != 2 || sizes[2] != 1 || m.copied.Load() != 4 {
		t.Errorf("transactions of %v puts, %d copied; want 1, 2 and 1, and 4", sizes, m.copied.Load())
	}
	if err := m.copyChanges(t.Context(), []*clientv3.Event{{Type: clientv3.EventTypeDelete, Kv: kv("a/", "", 0, 7, 0, 0)}}); err != nil {
		t.Error(err)
	}
	if got := m.destKey([]byte("a/x")); got != "b/x" {
		t.Errorf("destKey = %q", got)
	}
}
