package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/history"
)

// faults kills and pauses members of a cluster. Nothing else touches the processes.
type faults struct {
	c       *harness.Cluster
	clients []*child.Client
	r       *rand.Rand

	kills, pauses, blackouts int // members killed, members paused, times all were killed at once
}

// leader returns the position of the member that most recently became leader, or a random one.
func (f *faults) leader() int {
	best, term := f.r.IntN(len(f.clients)), uint64(0)
	for i, c := range f.clients {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		s, err := c.Maintenance.Status(ctx, &pb.StatusRequest{})
		cancel()
		if err == nil && s.Leader == s.Header.MemberId && s.RaftTerm > term {
			best, term = i, s.RaftTerm
		}
	}
	return best
}

// strike injects one random fault and repairs it.
func (f *faults) strike(t *testing.T) string {
	t.Helper()
	all := f.r.Perm(len(f.c.Members))
	switch p := f.r.IntN(100); {
	case p < 30:
		return f.kill(t, all[:1])
	case p < 45:
		return f.kill(t, []int{f.leader()})
	case p < 55:
		return f.kill(t, all[:2])
	case p < 75:
		f.blackouts++
		return f.kill(t, all)
	case p < 90:
		return f.pause(t, all[0])
	default:
		return f.pause(t, f.leader())
	}
}

// kill stops members with SIGKILL, almost at the same time, and restarts them after a while.
func (f *faults) kill(t *testing.T, which []int) string {
	t.Helper()
	for _, i := range which {
		if err := f.c.Members[i].Signal(syscall.SIGKILL); err != nil {
			t.Fatalf("kill: %v", err)
		}
	}
	for _, i := range which {
		<-f.c.Members[i].Exited()
	}
	f.kills += len(which)
	down := time.Duration(f.r.IntN(1500)) * time.Millisecond
	history.Sleep(t.Context(), down)
	for _, i := range which {
		if err := f.c.Members[i].Restart(); err != nil {
			t.Fatal(err)
		}
	}
	f.ready(t)
	return fmt.Sprintf("killed %v for %v", which, down)
}

// pause stops a member without killing it; the others see a silent peer with open connections.
func (f *faults) pause(t *testing.T, i int) string {
	t.Helper()
	if err := f.c.Members[i].Signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("pause: %v", err)
	}
	f.pauses++
	still := time.Duration(300+f.r.IntN(2700)) * time.Millisecond
	history.Sleep(t.Context(), still)
	if err := f.c.Members[i].Signal(syscall.SIGCONT); err != nil {
		t.Fatalf("resume: %v", err)
	}
	f.ready(t)
	return fmt.Sprintf("paused %d for %v", i, still)
}

func (f *faults) ready(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := f.c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// startCluster starts three members that run until the test ends.
func startCluster(t *testing.T, args ...string) *harness.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := harness.StartCluster(ctx, t.TempDir(), []string{etcd, etcd, etcd}, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, m := range c.Members {
				t.Logf("the log of %s ends with:\n%s", m.Name(), m.LogTail(12))
			}
		}
		c.Kill()
	})
	return c
}

func TestFaults(t *testing.T) {
	t.Parallel()
	t.Logf("seed %d", *seed)
	c := startCluster(t, "--snapshot-count=2000", "--snapshot-catchup-entries=500")
	var members []*child.Client
	var watchers []*history.Watcher
	for _, a := range c.ClientAddrs() {
		members = append(members, child.Dial(t, a))
		own := child.Dial(t, a)
		watchers = append(watchers, history.Watch(t, func() *child.Client { return own }))
	}
	l := history.NewLoad(members, *seed)
	t.Cleanup(func() { l.Stop() })
	f := &faults{c: c, clients: members, r: rand.New(rand.NewPCG(*seed, 0))}
	firstTerm := term(t, members)
	for id := range 6 {
		l.Mix(id)
	}
	for id := 6; id < 10; id++ {
		l.Unique(id, 0)
	}
	compactor := history.CompactBehind(l, watchers, nil)

	for l.Since() < *duration {
		at := l.Since()
		what := f.strike(t)
		t.Logf("%6.2fs %s, all ready after %.2fs", at.Seconds(), what, (l.Since() - at).Seconds())
		history.Sleep(t.Context(), time.Duration(300+f.r.IntN(1200))*time.Millisecond)
	}
	faulty := l.Since()
	rev, hash, _ := history.Verdict(t, limit, l, watchers, members)
	opened := int64(0)
	for _, w := range watchers {
		opened += w.Streams()
	}
	t.Logf("%.0fs of faults: %d members killed (%d times all at once), %d paused, %d elections", faulty.Seconds(),
		f.kills, f.blackouts, f.pauses, term(t, members)-firstTerm)
	t.Logf("%d operations acknowledged, %d without answer; longest time without an acknowledged write %v",
		l.Acked.Load(), l.Unknown.Load(), l.Longest().Round(time.Millisecond))
	t.Logf("%d revisions, %d compactions, %d watch streams for 3 watchers, hash %08x on all members", rev, <-compactor, opened, hash)
	if f.kills == 0 || l.Acked.Load() < 1000 {
		t.Errorf("%d kills and %d acknowledged operations prove nothing", f.kills, l.Acked.Load())
	}
}

func term(t *testing.T, members []*child.Client) uint64 {
	t.Helper()
	var term uint64
	child.Eventually(t, limit, "a member tells its term", func() error {
		for _, c := range members {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			s, err := c.Maintenance.Status(ctx, &pb.StatusRequest{})
			cancel()
			if err != nil {
				return err
			}
			term = max(term, s.RaftTerm)
		}
		return nil
	})
	return term
}
