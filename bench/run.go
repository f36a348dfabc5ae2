package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"quorate/bench/lean"
	"quorate/compat/harness"
)

// scale is the size of a run.
type scale struct {
	name       string
	reps       int           // repetitions of steps that do not change the data
	span       time.Duration // of each load
	clients    int
	listKeys   int // data set of the LIST rows, 1 KB values
	bigKeys    int // data set of the memory, restart and compaction rows, 256 B values
	overwrites int // of bigKeys, before the compaction
	tailPuts   int // single puts after a bulk load
	watchers   int
	logins     int // concurrent
}

var scales = map[string]scale{
	// The sizes of the design's table. The tail is longer than two default snapshot intervals, so that the log holds
	// ordinary puts, as a member in service does, and not the bulk load.
	"full": {"full", 3, 5 * time.Second, 100, 300_000, 1_000_000, 300_000, 25_000, 1000, 1000},
	// For a quick look and for continuous integration; ratios that depend on the size of the
	// data are smaller effects here.
	"small": {"small", 2, 1200 * time.Millisecond, 100, 40_000, 100_000, 30_000, 21_000, 1000, 200},
}

// serverFlags are given to both sides; everything else is the default.
var serverFlags = []string{"--quota-backend-bytes=8589934592"}

const readyTimeout = 2 * time.Minute

// side is one of the two servers, with its processes of the moment.
type side struct {
	index   int // 0 ours, 1 etcd
	name    string
	binary  string
	cluster *harness.Cluster
	clients *clients
	options lean.Options       // of connections
	secure  string             // the address that speaks TLS, if there is one
	scratch map[string]float64 // passed from one step to the next
}

// addrs are the targets of the load.
func (s *side) addrs() []string {
	if s.secure != "" {
		return []string{s.secure}
	}
	return s.cluster.ClientAddrs()
}

func (s *side) member() *harness.Member { return s.cluster.Members[0] }

// cpu is the CPU time of all members so far.
func (s *side) cpu() (time.Duration, error) {
	var total time.Duration
	for _, m := range s.cluster.Members {
		d, err := m.CPU()
		if err != nil {
			return 0, err
		}
		total += d
	}
	return total, nil
}

type run struct {
	scale scale
	dir   string
	sides [2]*side
	res   *results
	log   func(format string, args ...any)
}

// group is a set of rows that share running servers and data.
type group struct {
	name    string
	members int
	conns   int
	steps   func(r *run, ctx context.Context)
	rows    []string
	// confine, if set, is called before the servers start, and the function it returns when they have exited.
	confine func(r *run) (undo func(), err error)
}

var overloadRows = []string{"overload.goodput", "overload.rate", "overload.leaders", "overload.health", "overload.peak"}

var groups = []group{
	{"single", 1, 10, (*run).single, append([]string{"put1.cpu", "put1.rate", "put1.p50", "put1.p99", "alone.p50",
		"get.lin", "get.lin.rate", "get.ser", "get.ser.rate", "txn.cpu", "txn.rate", "page.cpu", "page.rate", "watch.cpu", "watch.p50"}, keepaliveRows...), nil},
	{"three", 3, 12, (*run).three, append([]string{"put3.cpu", "put3.rate", "put3.p99", "get3.cpu", "get3.rate"}, overloadRows...), nil},
	{"tls", 1, 10, (*run).tls, tlsRows, nil},
	{"memory", 1, 1, (*run).memory, memoryRows, nil},
	{"login", 1, 10, (*run).login, loginRows, nil},
	{"list", 1, 4, (*run).list, []string{"list10.cpu", "list10.p50", "count.cpu", "all.cpu", "all.time", "all.peak", "all.resident"}, nil},
	{"big", 1, 10, (*run).big, []string{"load.rate", "mem.loaded", "mem.restarted", "list1000.cpu", "list1000.p50",
		"restart.term", "restart.kill", "compact.time", "compact.p99", "defrag.time", "defrag.pause"}, nil},
	{"service", 1, 4, (*run).service, serviceRows, nil},
	{"service1m", 1, 4, (*run).service1M, service1MRows, nil},
	{"compaction", 1, 10, (*run).compactions, compactionRows, nil},
	{"pinned", 1, 10, (*run).pinned, pinnedRows, pin},
	{"quota", 1, 10, (*run).quota, quotaRows, throttle},
}

// group starts both sides fresh, runs the steps and tears everything down.
func (r *run) group(ctx context.Context, g group) {
	r.log("group %s", g.name)
	afterwards := func() {}
	defer func() {
		defer func() { afterwards() }()
		for _, s := range r.sides {
			if s.clients != nil {
				s.clients.close()
			}
			if s.cluster != nil {
				s.cluster.Kill()
			}
			s.clients, s.cluster, s.scratch = nil, nil, map[string]float64{}
		}
		if err := os.RemoveAll(filepath.Join(r.dir, g.name)); err != nil {
			r.log("remove data of %s: %v", g.name, err)
		}
	}()
	if g.confine != nil {
		undo, err := g.confine(r)
		if errors.Is(err, errSkipped) {
			r.log("  %v", err)
			return
		} else if err != nil {
			r.fail(g.rows, err)
			return
		}
		afterwards = undo
	}
	for _, s := range r.sides {
		if err := r.start(ctx, s, g); err != nil {
			r.fail(g.rows, fmt.Errorf("%s: %w", s.name, err))
			return
		}
	}
	for _, s := range r.sides {
		if err := agree(ctx, s); err != nil {
			r.fail(g.rows, fmt.Errorf("%s: %w", s.name, err))
			return
		}
	}
	g.steps(r, ctx)
}

func (r *run) start(ctx context.Context, s *side, g group) error {
	sctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	binaries := make([]string, g.members)
	for i := range binaries {
		binaries[i] = s.binary
	}
	s.scratch, s.options, s.secure = map[string]float64{}, lean.Options{}, ""
	var err error
	s.cluster, err = harness.StartCluster(sctx, filepath.Join(r.dir, g.name, s.name), binaries, serverFlags...)
	if err != nil {
		return err
	}
	s.clients, err = dial(ctx, s.addrs(), g.conns, s.options)
	return err
}

func (r *run) fail(ids []string, err error) {
	r.log("  failed: %v", err)
	for _, id := range ids {
		if r.res.failed[id] == "" {
			r.res.failed[id] = err.Error()
		}
	}
}

// step measures both sides in turn, reps times: ours, etcd, ours, etcd. A failure fails the rows of this step
// and ends it; the next one still runs.
func (r *run) step(ctx context.Context, ids []string, reps int, f func(ctx context.Context, s *side) (map[string]float64, error)) {
	for rep := range reps {
		for _, s := range r.sides {
			began := time.Now()
			values, err := f(ctx, s)
			if err != nil {
				r.fail(ids, fmt.Errorf("%s: %w", s.name, err))
				return
			}
			r.res.add(s.index, values)
			r.log("  %-5s %d/%d %5.1fs %v", s.name, rep+1, reps, time.Since(began).Seconds(), values)
		}
	}
}

// loaded runs a load and returns it with the CPU time that the side used meanwhile.
func (r *run) loaded(s *side, load func() (outcome, error)) (outcome, time.Duration, error) {
	before, err := s.cpu()
	if err != nil {
		return outcome{}, 0, err
	}
	o, err := load()
	if err != nil {
		return o, 0, err
	}
	after, err := s.cpu()
	return o, after - before, err
}

func micros(d time.Duration, ops int) float64 { return d.Seconds() * 1e6 / float64(ops) }
func millis(d time.Duration) float64          { return d.Seconds() * 1e3 }
func megabytes(n int64) float64               { return float64(n) / 1e6 }

// puts is the 100-client put load; sequence numbers restart, so keys are overwritten.
func (r *run) puts(ctx context.Context, s *side, n int, d time.Duration) (outcome, error) {
	return closedLoop(ctx, s.clients, n, d, methodPut, putAt)
}

// gets is the load of many clients that read single keys out of the first n of "read".
func (r *run) gets(ctx context.Context, s *side, n int, serializable bool) (outcome, error) {
	return closedLoop(ctx, s.clients, r.scale.clients, r.scale.span, methodRange, func(b []byte, seq int) []byte {
		return getAt(b, seq, n, serializable)
	})
}

// getAt appends the seq-th read, of a key out of the first n.
func getAt(b []byte, seq, n int, serializable bool) []byte {
	var key [keySize]byte
	return rangeRequest(b, keyAt(key[:], "read", seq*7919%n), rangeOptions{serializable: serializable})
}

// putAt appends the seq-th put of 256 bytes.
func putAt(b []byte, seq int) []byte {
	var key [keySize]byte
	var value [256]byte
	return putRequest(b, keyAt(key[:], "put", seq%100_000), valueAt(value[:], uint64(seq)))
}

func (r *run) single(ctx context.Context) {
	r.step(ctx, nil, 1, func(ctx context.Context, s *side) (map[string]float64, error) { // warm up
		_, err := r.puts(ctx, s, r.scale.clients, time.Second)
		return nil, err
	})
	r.step(ctx, []string{"put1.cpu", "put1.rate", "put1.p50", "put1.p99"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, cpu, err := r.loaded(s, func() (outcome, error) { return r.puts(ctx, s, r.scale.clients, r.scale.span) })
		return map[string]float64{"put1.cpu": micros(cpu, max(1, o.ops)), "put1.rate": o.perSecond(),
			"put1.p50": millis(o.percentile(0.5)), "put1.p99": millis(o.percentile(0.99))}, err
	})
	r.step(ctx, []string{"alone.p50"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, err := r.puts(ctx, s, 1, r.scale.span/2)
		return map[string]float64{"alone.p50": millis(o.percentile(0.5))}, err
	})
	const readKeys = 10_000
	r.step(ctx, nil, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		return nil, preload(ctx, s.clients, "read", 0, readKeys, 256, 0)
	})
	for _, kind := range []struct {
		id           string
		serializable bool
	}{{"get.lin", false}, {"get.ser", true}} {
		r.step(ctx, []string{kind.id, kind.id + ".rate"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
			o, cpu, err := r.loaded(s, func() (outcome, error) {
				return r.gets(ctx, s, readKeys, kind.serializable)
			})
			return map[string]float64{kind.id: micros(cpu, max(1, o.ops)), kind.id + ".rate": o.perSecond()}, err
		})
	}
	r.step(ctx, []string{"txn.cpu", "txn.rate"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, cpu, err := r.loaded(s, func() (outcome, error) {
			return closedLoop(ctx, s.clients, r.scale.clients, r.scale.span, methodTxn, func(b []byte, seq int) []byte {
				var key [keySize]byte
				var value [256]byte
				return txnUpdate(b, keyAt(key[:], "read", seq*7919%readKeys), valueAt(value[:], uint64(seq)))
			})
		})
		return map[string]float64{"txn.cpu": micros(cpu, max(1, o.ops)), "txn.rate": o.perSecond()}, err
	})
	r.step(ctx, []string{"page.cpu", "page.rate"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, cpu, err := r.loaded(s, func() (outcome, error) {
			return closedLoop(ctx, s.clients, r.scale.clients, r.scale.span, methodRange, func(b []byte, _ int) []byte {
				return rangeRequest(b, []byte("read/"), rangeOptions{end: []byte("read0"), limit: 500})
			})
		})
		return map[string]float64{"page.cpu": micros(cpu, max(1, o.ops)), "page.rate": o.perSecond()}, err
	})
	r.step(ctx, []string{"watch.cpu", "watch.p50"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		return r.fanOut(ctx, s)
	})
	r.step(ctx, keepaliveRows, r.scale.reps, r.keepalive)
}

func (r *run) three(ctx context.Context) {
	r.step(ctx, nil, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		_, err := r.puts(ctx, s, r.scale.clients, time.Second)
		return nil, err
	})
	r.step(ctx, []string{"put3.cpu", "put3.rate", "put3.p99"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, cpu, err := r.loaded(s, func() (outcome, error) { return r.puts(ctx, s, r.scale.clients, r.scale.span) })
		return map[string]float64{"put3.cpu": micros(cpu, max(1, o.ops)), "put3.rate": o.perSecond(),
			"put3.p99": millis(o.percentile(0.99))}, err
	})
	const readKeys = 10_000
	r.step(ctx, nil, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		return nil, preload(ctx, s.clients, "read", 0, readKeys, 256, 0)
	})
	r.step(ctx, []string{"get3.cpu", "get3.rate"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, cpu, err := r.loaded(s, func() (outcome, error) { return r.gets(ctx, s, readKeys, false) })
		return map[string]float64{"get3.cpu": micros(cpu, max(1, o.ops)), "get3.rate": o.perSecond()}, err
	})
	r.step(ctx, overloadRows, 1, r.overload)
}

// lists sends one kind of list from one client for a span.
func (r *run) lists(ctx context.Context, s *side, prefix string, o rangeOptions) (outcome, time.Duration, error) {
	o.end = []byte(prefix + "0")
	request := rangeRequest(nil, []byte(prefix+"/"), o)
	r2 := &reply{keep: o.limit != 0}
	if err := call(ctx, s.clients.conns[0], methodRange, request, r2); err != nil { // warm up
		return outcome{}, 0, err
	}
	if err := checkList(r2, o.limit); err != nil {
		return outcome{}, 0, err
	}
	return r.loaded(s, func() (outcome, error) {
		return closedLoop(ctx, s.clients, 1, r.scale.span, methodRange, func(b []byte, _ int) []byte { return append(b, request...) })
	})
}

// checkList makes sure that a page is complete: a fast wrong answer is no measurement.
func checkList(r *reply, limit int64) error {
	if !r.keep {
		return nil
	}
	n := int64(0)
	err := walk(r.body, func(num protowire.Number, _ protowire.Type, _ []byte) {
		if num == 2 { // RangeResponse.kvs
			n++
		}
	})
	if err != nil {
		return err
	}
	if n != limit {
		return fmt.Errorf("list with limit %d has %d keys", limit, n)
	}
	return nil
}

func (r *run) list(ctx context.Context) {
	failed := len(r.res.failed)
	r.step(ctx, []string{"list10.cpu", "list10.p50", "count.cpu", "all.cpu", "all.time", "all.peak", "all.resident"}, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		return nil, preload(ctx, s.clients, "list", 0, r.scale.listKeys, 1024, 0)
	})
	if len(r.res.failed) > failed {
		return
	}
	r.step(ctx, []string{"list10.cpu", "list10.p50"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, cpu, err := r.lists(ctx, s, "list", rangeOptions{limit: 10})
		return map[string]float64{"list10.cpu": micros(cpu, max(1, o.ops)) / 1e3, "list10.p50": millis(o.percentile(0.5))}, err
	})
	r.step(ctx, []string{"count.cpu"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, cpu, err := r.lists(ctx, s, "list", rangeOptions{countOnly: true})
		return map[string]float64{"count.cpu": micros(cpu, max(1, o.ops)) / 1e3}, err
	})
	// A restart before each repetition: otherwise the remains of the previous one would count as idle memory.
	r.step(ctx, []string{"all.cpu", "all.time", "all.peak", "all.resident"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		if _, err := r.restart(ctx, s, true); err != nil {
			return nil, err
		}
		if err := call(ctx, s.clients.conns[0], methodRange, rangeRequest(nil, []byte("list/"), rangeOptions{end: []byte("list0"), limit: 10}), &reply{}); err != nil {
			return nil, err
		}
		idle, err := residentAfter(ctx, s)
		if err != nil {
			return nil, err
		}
		if err := s.member().ResetPeak(); err != nil {
			return nil, err
		}
		all := &reply{}
		o, cpu, err := r.loaded(s, func() (outcome, error) {
			began := time.Now()
			err := call(ctx, s.clients.conns[0], methodRange, rangeRequest(nil, []byte("list/"), rangeOptions{end: []byte("list0")}), all)
			return outcome{ops: 1, elapsed: time.Since(began)}, err
		})
		if err != nil {
			return nil, err
		}
		if all.size < r.scale.listKeys*1024 {
			return nil, fmt.Errorf("list of everything has only %d bytes", all.size)
		}
		peak, err := s.member().Memory()
		return map[string]float64{"all.cpu": cpu.Seconds(), "all.time": o.elapsed.Seconds(),
			"all.peak": megabytes(peak.Peak) - idle, "all.resident": megabytes(peak.Peak)}, err
	})
}

// restart stops the member, gracefully or not, restarts it and returns the time from the start of the process to
// a served linearizable read.
func (r *run) restart(ctx context.Context, s *side, gentle bool) (time.Duration, error) {
	m := s.member()
	if gentle {
		sctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := m.Stop(sctx); err != nil {
			return 0, err
		}
	} else if err := m.Kill(); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := m.Restart(); err != nil {
		return 0, err
	}
	rctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := m.WaitReady(rctx); err != nil {
		return 0, err
	}
	took := time.Since(began)
	// The old connections would wait for their back-off before they retry.
	s.clients.close()
	var err error
	s.clients, err = dial(ctx, s.addrs(), len(s.clients.conns), s.options)
	return took, err
}

// settle gives the runtimes time to return memory to the system before it is read.
const settle = 3 * time.Second

func residentAfter(ctx context.Context, s *side) (float64, error) {
	t := time.NewTimer(settle)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-t.C:
	}
	mem, err := s.member().Memory()
	return megabytes(mem.Resident), err
}

func (r *run) big(ctx context.Context) {
	all := []string{"load.rate", "mem.loaded", "mem.restarted", "list1000.cpu", "list1000.p50", "restart.term",
		"restart.kill", "compact.time", "compact.p99", "defrag.time", "defrag.pause"}
	failed := len(r.res.failed)
	r.step(ctx, all, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		began := time.Now()
		if err := preload(ctx, s.clients, "big", 0, r.scale.bigKeys, 256, 0); err != nil {
			return nil, err
		}
		rate := float64(r.scale.bigKeys) / time.Since(began).Seconds()
		if err := r.tail(ctx, s); err != nil {
			return nil, err
		}
		mem, err := residentAfter(ctx, s)
		return map[string]float64{"load.rate": rate, "mem.loaded": mem}, err
	})
	if len(r.res.failed) > failed {
		return
	}
	r.step(ctx, []string{"list1000.cpu", "list1000.p50"}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, cpu, err := r.lists(ctx, s, "big", rangeOptions{limit: 1000})
		return map[string]float64{"list1000.cpu": micros(cpu, max(1, o.ops)) / 1e3, "list1000.p50": millis(o.percentile(0.5))}, err
	})
	r.step(ctx, []string{"restart.term", "mem.restarted"}, 3, func(ctx context.Context, s *side) (map[string]float64, error) {
		took, err := r.restart(ctx, s, true)
		if err != nil {
			return nil, err
		}
		mem, err := residentAfter(ctx, s)
		return map[string]float64{"restart.term": took.Seconds(), "mem.restarted": mem}, err
	})
	r.step(ctx, []string{"restart.kill"}, 3, func(ctx context.Context, s *side) (map[string]float64, error) {
		// Some writes first: a process that is killed while idle has nothing to recover.
		if _, err := r.puts(ctx, s, r.scale.clients, 500*time.Millisecond); err != nil {
			return nil, err
		}
		took, err := r.restart(ctx, s, false)
		return map[string]float64{"restart.kill": took.Seconds()}, err
	})
	r.step(ctx, []string{"compact.time", "compact.p99"}, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		if err := preload(ctx, s.clients, "big", 0, r.scale.overwrites, 256, 1<<32); err != nil {
			return nil, err
		}
		c, err := r.compact(ctx, s)
		return map[string]float64{"compact.time": c.took.Seconds(), "compact.p99": c.ratio}, err
	})
	r.step(ctx, []string{"defrag.time", "defrag.pause"}, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		p := startPacer(s.clients, pacedRate, pacedKeys)
		began := time.Now()
		derr := call(ctx, s.clients.conns[1], methodDefrag, nil, &reply{})
		took := time.Since(began)
		o, err := p.finish()
		if err := errors.Join(derr, err); err != nil {
			return nil, err
		}
		return map[string]float64{"defrag.time": took.Seconds(), "defrag.pause": millis(o.percentile(1))}, nil
	})
}

// tail writes single puts until the log after the last snapshot holds nothing else.
func (r *run) tail(ctx context.Context, s *side) error {
	for written := 0; written < r.scale.tailPuts; {
		o, err := r.puts(ctx, s, r.scale.clients, time.Second)
		if err != nil {
			return err
		}
		written += o.ops
	}
	return nil
}

// endSignals stop the run at the next request.
var endSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}
