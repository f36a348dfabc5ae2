package main

import (
	"fmt"
	"math"
	"slices"
)

// row is one line of the table.
type row struct {
	id, title string
	unit      string
	// higher marks rows where more is better; their ratio must be at least the budget.
	higher bool
	// absolute marks rows whose budget is on our own value, not on the ratio.
	absolute bool
	budget   float64 // of the design; 0 if it names none
	required float64 // required now; 0 if nothing is
}

// rows in table order. Budgets are those of the design; what is required now is weaker where listed, and
// everywhere else: not worse than etcd.
var rows = []row{
	{id: "put1.cpu", title: "put, 1 member, 100 clients: server CPU per op", unit: "µs", budget: 0.5, required: 0.6},
	{id: "put1.rate", title: "put, 1 member, 100 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "put1.p50", title: "put, 1 member, 100 clients: latency p50", unit: "ms", required: 1},
	{id: "put1.p99", title: "put, 1 member, 100 clients: latency p99", unit: "ms", required: 1},
	{id: "put3.cpu", title: "put, 3 members, 100 clients: CPU per op, all members", unit: "µs", budget: 0.4, required: 1},
	{id: "put3.rate", title: "put, 3 members, 100 clients: throughput", unit: "/s", higher: true, budget: 2, required: 1.5},
	{id: "put3.p99", title: "put, 3 members, 100 clients: latency p99", unit: "ms", required: 1},
	{id: "get3.cpu", title: "linearizable get, 3 members, 100 clients: CPU per op, all members", unit: "µs", required: 1},
	{id: "get3.rate", title: "linearizable get, 3 members, 100 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "pinned.put.cpu", title: "put, 1 member pinned to one CPU, 100 clients: CPU per op", unit: "µs", budget: 0.6, required: 0.6},
	{id: "pinned.put.rate", title: "put, 1 member pinned to one CPU, 100 clients: throughput", unit: "/s", higher: true, budget: 1.5, required: 1.5},
	{id: "pinned.many.cpu", title: "put, 1 member pinned to one CPU, 1,000 clients: CPU per op", unit: "µs", budget: 0.6, required: 0.6},
	{id: "pinned.many.rate", title: "put, 1 member pinned to one CPU, 1,000 clients: throughput", unit: "/s", higher: true, budget: 1.5, required: 1.5},
	{id: "pinned.defrag.p99", title: "put p99 during a defrag, 1 member pinned to one CPU", unit: "ms", required: 1},
	{id: "quota.put.cpu", title: "put, 1 member with a quota of one CPU, 100 clients: CPU per op", unit: "µs", budget: 0.6, required: 0.6},
	{id: "quota.put.rate", title: "put, 1 member with a quota of one CPU, 100 clients: throughput", unit: "/s", higher: true, budget: 1.5, required: 1.5},
	{id: "quota.many.cpu", title: "put, 1 member with a quota of one CPU, 1,000 clients: CPU per op", unit: "µs", budget: 0.6, required: 0.6},
	{id: "quota.many.rate", title: "put, 1 member with a quota of one CPU, 1,000 clients: throughput", unit: "/s", higher: true, budget: 1.5, required: 1.5},
	{id: "quota.defrag.p99", title: "put p99 during a defrag, 1 member with a quota of one CPU", unit: "ms", required: 1},
	{id: "overload.goodput", title: "put, 3 members, 1,000 clients: goodput relative to 100 clients", unit: "×", higher: true, absolute: true, budget: 0.9},
	{id: "overload.rate", title: "put, 3 members, 1,000 clients: goodput", unit: "/s", higher: true, required: 1},
	{id: "overload.leaders", title: "put, 3 members, 1,000 clients: leaders during the run", unit: "", absolute: true, budget: 1, required: 1},
	{id: "overload.health", title: "put, 3 members, 1,000 clients: p99 of /health", unit: "ms", required: 1},
	{id: "overload.peak", title: "put, 3 members, 1,000 clients: peak resident memory of a member", unit: "MB", absolute: true, budget: 512},
	{id: "alone.p50", title: "put, 1 member, 1 client: latency p50", unit: "ms", budget: 0.6, required: 1},
	{id: "get.lin", title: "linearizable get, 100 clients: CPU per op", unit: "µs", budget: 0.75, required: 1},
	{id: "get.lin.rate", title: "linearizable get, 100 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "get.ser", title: "serializable get, 100 clients: CPU per op", unit: "µs", budget: 0.75, required: 1},
	{id: "get.ser.rate", title: "serializable get, 100 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "txn.cpu", title: "transaction (compare, then put), 100 clients: CPU per op", unit: "µs", required: 1},
	{id: "txn.rate", title: "transaction (compare, then put), 100 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "page.cpu", title: "LIST limit=500 over 10k keys of 256 B, 100 clients: CPU per op", unit: "µs", required: 1},
	{id: "page.rate", title: "LIST limit=500 over 10k keys of 256 B, 100 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "keepalive.cpu", title: "lease keepalive, 100 clients, a stream each: CPU per renewal", unit: "µs", budget: 0.35, required: 1},
	{id: "keepalive.rate", title: "lease keepalive, 100 clients, a stream each: throughput", unit: "/s", higher: true, required: 1},
	{id: "tls.put.cpu", title: "TLS, put, 100 clients: CPU per op", unit: "µs", budget: 0.35, required: 1},
	{id: "tls.put.rate", title: "TLS, put, 100 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "tls.get.cpu", title: "TLS, linearizable get, 100 clients: CPU per op", unit: "µs", budget: 0.28, required: 1},
	{id: "tls.get.rate", title: "TLS, linearizable get, 100 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "tls.list.cpu", title: "TLS, LIST of 10k × 1 KB, 1 client: CPU per op", unit: "ms", budget: 0.3, required: 1},
	{id: "tls.list.rate", title: "TLS, LIST of 10k × 1 KB, 1 client: throughput", unit: "/s", higher: true, required: 1},
	{id: "memory.conn", title: "resident memory of an idle connection, of 10,000", unit: "KB", budget: 0.3, required: 1},
	{id: "memory.watch", title: "resident memory of an idle watch stream, of 10,000 on 100 connections", unit: "KB", budget: 0.3, required: 1},
	{id: "login.calm", title: "put p99 during a storm of logins, relative to the p99 before", unit: "×", absolute: true, budget: 2},
	{id: "login.put", title: "put p99 during a storm of logins", unit: "ms", required: 1},
	{id: "login.rate", title: "storm of logins: logins", unit: "/s", higher: true},
	{id: "list10.cpu", title: "LIST limit=10 over %[1]s keys: CPU", unit: "ms", budget: 0.01, required: 0.02},
	{id: "list10.p50", title: "LIST limit=10 over %[1]s keys: latency p50", unit: "ms", required: 1},
	{id: "list1000.cpu", title: "LIST limit=1000 over %[2]s keys: CPU", unit: "ms", budget: 0.01, required: 0.02},
	{id: "list1000.p50", title: "LIST limit=1000 over %[2]s keys: latency p50", unit: "ms", required: 1},
	{id: "all.cpu", title: "LIST of everything, %[1]s × 1 KB: CPU", unit: "s", budget: 0.3, required: 1},
	{id: "all.time", title: "LIST of everything, %[1]s × 1 KB: time", unit: "s", required: 1},
	{id: "all.peak", title: "LIST of everything, %[1]s × 1 KB: peak memory over idle", unit: "MB", budget: 0.25, required: 1},
	{id: "all.resident", title: "LIST of everything, %[1]s × 1 KB: peak resident memory", unit: "MB", required: 1},
	{id: "service.list100.cpu", title: "%[1]s × 1 KB written in random order, LIST limit=100: CPU", unit: "ms", required: 1},
	{id: "service.list1000.cpu", title: "%[1]s × 1 KB written in random order, LIST limit=1000: CPU", unit: "ms", budget: 0.2, required: 1},
	{id: "service.all.cpu", title: "%[1]s × 1 KB written in random order, LIST of everything: CPU", unit: "s", budget: 0.35, required: 1},
	{id: "service.put.cpu", title: "%[1]s × 1 KB written in random order, put, 50 clients: CPU per op", unit: "µs", budget: 0.5, required: 1},
	{id: "service.put.rate", title: "%[1]s × 1 KB written in random order, put, 50 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "service.re.list100.cpu", title: "%[1]s × 1 KB written in random order, LIST limit=100, after a restart: CPU", unit: "ms", required: 1},
	{id: "service.re.list1000.cpu", title: "%[1]s × 1 KB written in random order, LIST limit=1000, after a restart: CPU", unit: "ms", budget: 0.2, required: 1},
	{id: "service.re.all.cpu", title: "%[1]s × 1 KB written in random order, LIST of everything, after a restart: CPU", unit: "s", budget: 0.35, required: 1},
	{id: "service.re.put.cpu", title: "%[1]s × 1 KB written in random order, put, 50 clients, after a restart: CPU per op", unit: "µs", budget: 0.5, required: 1},
	{id: "service.re.put.rate", title: "%[1]s × 1 KB written in random order, put, 50 clients, after a restart: throughput", unit: "/s", higher: true, required: 1},
	{id: "service1m.list100.cpu", title: "%[2]s × 1 KB written in random order, LIST limit=100: CPU", unit: "ms", budget: 0.02, required: 1},
	{id: "service1m.list1000.cpu", title: "%[2]s × 1 KB written in random order, LIST limit=1000: CPU", unit: "ms", budget: 0.05, required: 1},
	{id: "service1m.all.cpu", title: "%[2]s × 1 KB written in random order, LIST of everything: CPU", unit: "s", budget: 0.35, required: 1},
	{id: "service1m.put.cpu", title: "%[2]s × 1 KB written in random order, put, 50 clients: CPU per op", unit: "µs", budget: 0.5, required: 1},
	{id: "service1m.put.rate", title: "%[2]s × 1 KB written in random order, put, 50 clients: throughput", unit: "/s", higher: true, required: 1},
	{id: "service1m.re.list100.cpu", title: "%[2]s × 1 KB written in random order, LIST limit=100, after a restart: CPU", unit: "ms", budget: 0.02, required: 1},
	{id: "service1m.re.list1000.cpu", title: "%[2]s × 1 KB written in random order, LIST limit=1000, after a restart: CPU", unit: "ms", budget: 0.05, required: 1},
	{id: "service1m.re.all.cpu", title: "%[2]s × 1 KB written in random order, LIST of everything, after a restart: CPU", unit: "s", budget: 0.35, required: 1},
	{id: "service1m.re.put.cpu", title: "%[2]s × 1 KB written in random order, put, 50 clients, after a restart: CPU per op", unit: "µs", budget: 0.5, required: 1},
	{id: "service1m.re.put.rate", title: "%[2]s × 1 KB written in random order, put, 50 clients, after a restart: throughput", unit: "/s", higher: true, required: 1},
	{id: "count.cpu", title: "count-only over %[1]s keys: CPU", unit: "ms", budget: 0.01, required: 0.02},
	{id: "watch.cpu", title: "watch fan-out, 1,000 watchers of one key: CPU per delivered event", unit: "µs", budget: 0.35, required: 1},
	{id: "watch.p50", title: "watch fan-out, 1,000 watchers of one key: put to last delivery p50", unit: "ms", required: 1},
	{id: "load.rate", title: "load of %[2]s keys, 128 per transaction: keys", unit: "/s", higher: true, required: 1},
	{id: "mem.loaded", title: "resident memory, %[2]s keys of 32 B + 256 B, after the load", unit: "MB", budget: 0.4, required: 0.5},
	{id: "mem.restarted", title: "resident memory, %[2]s keys of 32 B + 256 B, after a restart", unit: "MB", budget: 0.4, required: 0.5},
	{id: "restart.term", title: "restart to ready, %[2]s keys, after SIGTERM", unit: "s", budget: 0.3, required: 0.5},
	{id: "restart.kill", title: "restart to ready, %[2]s keys, after kill -9", unit: "s", budget: 0.3, required: 0.5},
	{id: "compact.time", title: "compaction of %[3]s revisions, physical", unit: "s", budget: 0.2, required: 0.3},
	{id: "compact.p99", title: "put p99 during the compaction, relative to the p99 before", unit: "×", absolute: true, budget: 1.3},
	{id: "compaction.p99", title: "put p99 during a compaction of %[4]s revisions, median of 5 runs, relative to the p99 before", unit: "×", absolute: true, budget: 2},
	{id: "compaction.put", title: "put p99 during a compaction of %[4]s revisions", unit: "ms", required: 1},
	{id: "compaction.time", title: "compaction of %[4]s revisions: time", unit: "s", budget: 0.3, required: 1},
	{id: "compaction.cpu", title: "compaction of %[4]s revisions: CPU, including concurrent puts", unit: "s", required: 1},
	{id: "defrag.time", title: "defrag: time", unit: "s", required: 1},
	{id: "defrag.pause", title: "defrag: longest wait of a concurrent put", unit: "ms", budget: 0.1, required: 1},
}

// results collects samples by row and side.
type results struct {
	samples map[string]*[2][]float64
	failed  map[string]string
}

func newResults() *results {
	return &results{samples: map[string]*[2][]float64{}, failed: map[string]string{}}
}

func (r *results) add(side int, values map[string]float64) {
	for id, v := range values {
		s := r.samples[id]
		if s == nil {
			s = &[2][]float64{}
			r.samples[id] = s
		}
		s[side] = append(s[side], v)
	}
}

// median is NaN without samples.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// line is a row with its measurements.
type line struct {
	row
	ours, etcd, ratio float64
	err               string
}

// lines returns the measured and the failed rows, in table order.
func (r *results) lines(s scale) []line {
	var out []line
	for _, w := range rows {
		l := line{row: w, err: r.failed[w.id], ours: math.NaN(), etcd: math.NaN()}
		if sm := r.samples[w.id]; sm != nil {
			l.ours, l.etcd = median(sm[0]), median(sm[1])
		} else if l.err == "" {
			continue
		}
		l.title = expand(w.title, s)
		l.ratio = l.ours / l.etcd
		out = append(out, l)
	}
	return out
}

func expand(title string, s scale) string {
	if !slices.Contains([]byte(title), '%') {
		return title
	}
	t := fmt.Sprintf(title, short(s.listKeys), short(s.bigKeys), short(s.bigKeys+s.overwrites), short(2*s.listKeys))
	return cutExtra(t)
}

// cutExtra drops what Sprintf appends for arguments that a title does not use.
func cutExtra(t string) string {
	for i := range len(t) - 1 {
		if t[i] == '%' && t[i+1] == '!' {
			return t[:i]
		}
	}
	return t
}

func short(n int) string {
	switch {
	case n >= 1_000_000:
		return fmt.Sprintf("%.3gM", float64(n)/1e6)
	case n >= 1000:
		return fmt.Sprintf("%.3gk", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}

// holds compares a row's value with a bound.
func (l line) holds(bound float64) bool {
	v := l.ratio
	if l.absolute {
		v = l.ours
	}
	if l.higher {
		return v >= bound
	}
	return v <= bound // false for NaN
}

// pass reports whether the requirement holds; rows without one pass when measured.
func (l line) pass() bool {
	if l.err != "" || math.IsNaN(l.ours) || math.IsNaN(l.etcd) {
		return false
	}
	return l.required == 0 || l.holds(l.required)
}
