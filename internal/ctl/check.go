package ctl

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"quorate/internal/clock"

	"github.com/cheggaaa/pb/v3"
	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a checkCommands) check() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check <subcommand>",
		Short:   "Measures whether the cluster can handle a load",
		Example: examples("etcdctl check perf --load=m", "etcdctl check datascale"),
	}
	cmd.AddCommand(a.perf(), a.datascale())
	return cmd
}

// checkFlags are the flags of both checks.
type checkFlags struct {
	load, prefix            string
	autoCompact, autoDefrag bool
}

func (f *checkFlags) register(cmd *cobra.Command, prefix string) {
	fs := cmd.Flags()
	fs.StringVar(&f.load, "load", "s", "load: s(small), m(medium), l(large) or xl(xLarge)")
	fs.StringVar(&f.prefix, "prefix", prefix, "prefix of the keys to write; no key may exist below it")
	fs.BoolVar(&f.autoCompact, "auto-compact", false, "compact at the last revision afterwards")
	fs.BoolVar(&f.autoDefrag, "auto-defrag", false, "defragment the endpoints afterwards")
	oneOf(cmd, "load", "s", "m", "l", "xl")
}

// load returns the load that the flag selects.
func load[T any](f *checkFlags, loads map[string]T) (T, error) {
	name := f.load
	switch name {
	case "small", "medium", "large":
		name = name[:1]
	case "xLarge":
		name = "xl"
	}
	l, ok := loads[name]
	if !ok {
		return l, fail(exitBadFeature, fmt.Errorf("unknown load option %v", f.load))
	}
	return l, nil
}

type perfLoad struct {
	limit    int // writes a second
	clients  int // connections that write concurrently
	duration time.Duration
}

var perfLoads = map[string]perfLoad{
	"s":  {limit: 150, clients: 50, duration: time.Minute},
	"m":  {limit: 1000, clients: 200, duration: time.Minute},
	"l":  {limit: 8000, clients: 500, duration: time.Minute},
	"xl": {limit: 15000, clients: 1000, duration: time.Minute},
}

// Sizes of what the checks write, in bytes.
const (
	perfKeySize, perfValueSize   = 256, 1024
	scaleKeySize, scaleValueSize = 512, 512
)

// Timeouts of a single write, and of the clean-up.
const (
	checkWriteLimit   = 30 * time.Second
	checkCleanupLimit = 30 * time.Second
)

func (a checkCommands) perf() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "perf [options]",
		Short: "Writes for a minute and says whether the cluster keeps up",
		Long: strings.TrimSpace(`
Writes for a minute at a fixed rate, deletes what it wrote, and says whether the
cluster keeps up: at least 90% of the rate, no write slower than half a second, a
standard deviation below a tenth. It loads the cluster, so beware in production.

load     writes a second   clients
s                    150        50
m                   1000       200
l                   8000       500
xl                 15000      1000`),
		Example: examples("etcdctl check perf", "etcdctl check perf --load=m --auto-compact --auto-defrag"),
	}
	f := &checkFlags{}
	f.register(cmd, "/etcdctl-check-perf/")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		l, err := load(f, perfLoads)
		if err != nil {
			return err
		}
		s, err := a.session(cmd)
		if err != nil {
			return err
		}
		return checker{s}.perf(f, l)
	})
	return cmd
}

// checker is a session that runs a check.
type checker struct{ *session }

func (s checker) perf(f *checkFlags, l perfLoad) error {
	clients, err := s.clients(l.clients)
	defer closeAll(clients)
	if err != nil {
		return err
	}
	if err := s.requireNoKeys(clients[0], f.prefix, "prefix %q has keys. Delete with 'etcdctl del --prefix %s' first"); err != nil {
		return err
	}

	// An interrupt ends the load early; the written keys are deleted all the same.
	interrupted, stop := s.app.UntilSignal(os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(interrupted, l.duration)
	defer cancel()

	limit := rate.NewLimiter(rate.Limit(l.limit), 1)
	value := string(make([]byte, perfValueSize))
	stopBar := s.secondsBar(l.duration)
	stats := runLoad(clients, nil, func(yield func(clientv3.Op) bool) {
		for limit.Wait(ctx) == nil && yield(clientv3.OpPut(f.prefix+randomKey(perfKeySize), value)) {
		}
	})
	stopBar(interrupted.Err() == nil)

	if err := s.cleanUp(clients[0], f); err != nil {
		return err
	}
	ok := true
	for _, v := range stats.perfVerdicts(l.limit) {
		fmt.Fprintln(s.app.Stdout, v.text)
		ok = ok && v.ok
	}
	if !ok {
		fmt.Fprintln(s.app.Stdout, "FAIL")
		return fail(exitError, nil)
	}
	fmt.Fprintln(s.app.Stdout, "PASS")
	return nil
}

// secondsBar shows the elapsed part of length until stop is called; all says that all of it
// was used.
func (s checker) secondsBar(length time.Duration) (stop func(all bool)) {
	bar := pb.New(int(length / time.Second)).SetWriter(s.app.Stderr).Start()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := clock.NewTicker(clock.System, time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				bar.Increment()
			case <-done:
				return
			}
		}
	})
	return func(all bool) {
		close(done)
		wg.Wait()
		if all {
			bar.SetCurrent(bar.Total())
		}
		bar.Finish()
	}
}

// perfVerdicts returns a verdict for each criterion at a rate of limit writes a second.
func (st *loadStats) perfVerdicts(limit int) []verdict {
	v := st.errorVerdicts()
	perSecond := st.perSecond()
	if perSecond/float64(limit) <= 0.9 {
		v = append(v, verdict{text: fmt.Sprintf("FAIL: Throughput too low: %d writes/s", int(perSecond)+1)})
	} else {
		v = append(v, verdict{ok: true, text: fmt.Sprintf("PASS: Throughput is %d writes/s", int(perSecond)+1)})
	}
	if slowest := st.slowest.Seconds(); slowest > 0.5 {
		v = append(v, verdict{text: fmt.Sprintf("Slowest request took too long: %fs", slowest)})
	} else {
		v = append(v, verdict{ok: true, text: fmt.Sprintf("PASS: Slowest request took %fs", slowest)})
	}
	if stddev := st.stddev(); stddev > 0.1 {
		v = append(v, verdict{text: fmt.Sprintf("Stddev too high: %fs", stddev)})
	} else {
		v = append(v, verdict{ok: true, text: fmt.Sprintf("PASS: Stddev is %fs", stddev)})
	}
	return v
}

type scaleLoad struct{ limit, kvSize, clients int }

var scaleLoads = map[string]scaleLoad{
	"s":  {limit: 10000, kvSize: scaleKeySize + scaleValueSize, clients: 50},
	"m":  {limit: 100000, kvSize: scaleKeySize + scaleValueSize, clients: 200},
	"l":  {limit: 1000000, kvSize: scaleKeySize + scaleValueSize, clients: 500},
	"xl": {limit: 3000000, kvSize: scaleKeySize + scaleValueSize, clients: 1000},
}

func (a checkCommands) datascale() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "datascale [options]",
		Short: "Writes many keys and says how much memory they took",
		Long: strings.TrimSpace(`
Writes many keys of 1 KiB as fast as it goes, says by how much the memory of the
first endpoint grew, and deletes them. The endpoint must show its metrics.

load        keys   clients
s          10000        50
m         100000       200
l        1000000       500
xl       3000000      1000`),
		Example: examples("etcdctl --endpoints=10.0.0.1:2379 check datascale --load=m --auto-compact --auto-defrag"),
	}
	f := &checkFlags{}
	f.register(cmd, "/etcdctl-check-datascale/")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		l, err := load(f, scaleLoads)
		if err != nil {
			return err
		}
		s, err := a.session(cmd)
		if err != nil {
			return err
		}
		return checker{s}.datascale(f, l)
	})
	return cmd
}

func (s checker) datascale(f *checkFlags, l scaleLoad) error {
	out := s.app.Stdout
	clients, err := s.clients(l.clients)
	defer closeAll(clients)
	if err != nil {
		return err
	}
	if err := s.requireNoKeys(clients[0], f.prefix, "prefix %q has keys. Delete with etcdctl del --prefix %s first"); err != nil {
		return err
	}
	memory := func(when string) (float64, error) {
		bytes, err := s.residentMemory(s.spec.Endpoints[0])
		if err != nil {
			fmt.Fprintln(out, err)
			fmt.Fprintf(out, "FAIL: Could not read process_resident_memory_bytes %s the put operations.\n", when)
			return 0, fail(exitError, nil)
		}
		return bytes, nil
	}
	before, err := memory("before")
	if err != nil {
		return err
	}

	fmt.Fprintf(out, "Start data scale check for work load [%v key-value pairs, %v bytes per key-value, %v concurrent clients].\n", l.limit, l.kvSize, l.clients)
	bar := pb.New(l.limit).SetWriter(s.app.Stderr).Start()
	value := string(make([]byte, scaleValueSize))
	stats := runLoad(clients, func() { bar.Increment() }, func(yield func(clientv3.Op) bool) {
		for i := 0; i < l.limit && yield(clientv3.OpPut(f.prefix+randomKey(scaleKeySize), value)); i++ {
		}
	})
	bar.Finish()

	after, memErr := memory("after")
	if err := s.cleanUp(clients[0], f); err != nil {
		return err
	}
	if memErr != nil {
		return memErr
	}
	if bad := stats.errorVerdicts(); len(bad) > 0 {
		for _, v := range bad {
			fmt.Fprintln(out, v.text)
		}
		return fail(exitError, nil)
	}
	fmt.Fprintf(out, "PASS: Approximate system memory used : %.2f MB.\n", (after-before)/(1<<20))
	return nil
}

// clients opens n connections. On an error it returns those that were opened.
func (s checker) clients(n int) ([]*clientv3.Client, error) {
	clients := make([]*clientv3.Client, 0, n)
	for range n {
		c, err := s.client()
		if err != nil {
			return clients, err
		}
		clients = append(clients, c)
	}
	return clients, nil
}

func closeAll(clients []*clientv3.Client) {
	for _, c := range clients {
		_ = c.Close() // nothing is in flight
	}
}

// requireNoKeys fails if there are keys under the prefix, because the check deletes all of
// them at the end.
func (s checker) requireNoKeys(c *clientv3.Client, prefix, text string) error {
	ctx, cancel := s.timeout()
	defer cancel()
	r, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1))
	if err != nil {
		return s.rpcError(exitError, err)
	}
	if len(r.Kvs) > 0 {
		return fail(exitInvalidInput, fmt.Errorf(text, prefix, prefix))
	}
	return nil
}

// cleanUp deletes what a check wrote. A failure is reported, but does not replace the
// verdict.
func (s checker) cleanUp(c *clientv3.Client, f *checkFlags) error {
	out := s.app.Stdout
	ctx, cancel := context.WithTimeout(context.Background(), checkCleanupLimit)
	defer cancel()
	r, err := c.Delete(ctx, f.prefix, clientv3.WithPrefix())
	switch {
	case err != nil:
		fmt.Fprintf(out, "FAIL: Cleanup failed during key deletion: ERROR(%v)\n", err)
	case f.autoCompact:
		rev := r.Header.GetRevision()
		fmt.Fprintf(out, "Compacting with revision %d\n", rev)
		if _, err := c.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
			return s.rpcError(exitError, err)
		}
		fmt.Fprintf(out, "Compacted with revision %d\n", rev)
	}
	if !f.autoDefrag {
		return nil
	}
	for _, ep := range c.Endpoints() {
		ctx, cancel := context.WithTimeout(context.Background(), checkCleanupLimit)
		defer cancel()
		fmt.Fprintf(out, "Defragmenting %q\n", ep)
		if _, err := c.Defragment(ctx, ep); err != nil {
			return s.rpcError(exitError, err, ep)
		}
		fmt.Fprintf(out, "Defragmented %q\n", ep)
	}
	return nil
}

// randomKey returns size bytes, the first few of them random.
func randomKey(size int) string {
	k := make([]byte, size)
	if _, err := rand.Read(k[:10]); err != nil {
		panic(err) // crypto/rand does not fail
	}
	return string(k)
}
