// Package hostile shows that a member keeps serving while its ports are attacked.
//
// In: the server of this tree. Out: attacks on its client, peer and metrics ports while an ordinary client
// writes. Invariant: an attack is bounded by its own size, not by a time, and after it the member is the same
// process, its memory is bounded, its log is short, and the ordinary client has been served throughout.
package hostile

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
)

var etcdFlag = flag.String("etcd", "", "server binary; empty: built from this tree")

var etcd string

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 120 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hostile")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if etcd, err = child.Binary(*etcdFlag, "etcd", dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// victim is the member under attack, with a well-behaved client.
type victim struct {
	*harness.Member
	good      *child.Client
	metrics   string // host:port
	mayRefuse bool   // the ordinary client may get "too many requests"
	served    atomic.Int64
	halt      context.CancelFunc
	done      sync.WaitGroup
	failed    chan error // the first request of the ordinary client that failed
}

func newVictim(t *testing.T, args ...string) *victim { return startVictim(t, false, args) }

func startVictim(t *testing.T, mayRefuse bool, args []string) *victim {
	t.Helper()
	addrs, err := harness.FreeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	m, err := harness.StartSingle(ctx, harness.Config{Binary: etcd, Dir: t.TempDir(),
		Args: append([]string{"--listen-metrics-urls", "http://" + addrs[0]}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	v := &victim{Member: m, good: child.Dial(t, m.ClientAddr()), metrics: addrs[0], failed: make(chan error, 1), mayRefuse: mayRefuse}
	run, halt := context.WithCancel(context.Background())
	v.halt = halt
	v.done.Go(func() {
		for i := 0; run.Err() == nil; i++ {
			_, err := v.good.PutWithin(limit/2, fmt.Sprintf("good/%d", i%100), "x")
			switch {
			case err == nil:
				v.served.Add(1)
			case v.mayRefuse && strings.Contains(err.Error(), "etcdserver: too many requests"):
				// It retries.
			default:
				select {
				case v.failed <- err:
				default:
				}
				return
			}
			// Not as fast as it can: it is a client, not a load.
			select {
			case <-time.After(10 * time.Millisecond):
			case <-run.Done():
			}
		}
	})
	t.Cleanup(func() { halt(); v.done.Wait() })
	return v
}

// survives waits until the ordinary client has been served ten more times, and checks what the attack left: the
// process, its memory, its log.
func (v *victim) survives(t *testing.T, before int, maxMB int64) {
	t.Helper()
	from := v.served.Load()
	child.Eventually(t, limit, "the ordinary client is served", func() error {
		select {
		case err := <-v.failed:
			t.Fatalf("a request of the ordinary client failed: %v\n%s", err, v.LogTail(20))
		default:
		}
		if !v.Running() {
			t.Fatalf("the member has ended:\n%s", v.LogTail(40))
		}
		if n := v.served.Load() - from; n < 10 {
			return fmt.Errorf("%d more requests", n)
		}
		return nil
	})
	mem, err := v.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if mb := int64(mem.Peak) >> 20; mb > maxMB {
		t.Errorf("the member took %d MB at its peak, more than %d", mb, maxMB)
	}
	if n := v.lines(t) - before; n > maxLines {
		t.Errorf("%d lines in the log, more than %d; the last:\n%s", n, maxLines, v.LogTail(5))
	}
	t.Logf("peak of memory %d MB, %d requests of the ordinary client in all", int64(mem.Peak)>>20, v.served.Load())
}

// maxLines is the number of lines that one attack may add to the log. Slow requests produce a hundred per
// second.
const maxLines = 5000

// lines counts the lines of the log, and fails if there is a panic trace.
func (v *victim) lines(t *testing.T) (n int) {
	t.Helper()
	f, err := os.Open(v.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		if line := s.Text(); strings.Contains(line, "panic") || strings.HasPrefix(line, "goroutine ") {
			t.Errorf("a panic in the log: %s", line)
		}
		n++
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}
