package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// faults kills and pauses members of a cluster. It is the only one to touch the processes.
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

// strike does one random thing to the cluster and mends it.
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

// kill ends members by SIGKILL, as good as at once, and starts them again after a while.
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
	sleep(t.Context(), down)
	for _, i := range which {
		if err := f.c.Members[i].Restart(); err != nil {
			t.Fatal(err)
		}
	}
	f.ready(t)
	return fmt.Sprintf("killed %v for %v", which, down)
}

// pause stops a member without ending it; the others see a silent peer with open connections.
func (f *faults) pause(t *testing.T, i int) string {
	t.Helper()
	if err := f.c.Members[i].Signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("pause: %v", err)
	}
	f.pauses++
	still := time.Duration(300+f.r.IntN(2700)) * time.Millisecond
	sleep(t.Context(), still)
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

// startCluster starts three members that end with the test.
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
	addrs := c.ClientAddrs()
	l := newLoad(t, addrs)
	f := &faults{c: c, clients: l.members, r: rand.New(rand.NewPCG(*seed, 0))}
	firstTerm := term(t, l.members)
	var watchers []*watcher
	for _, a := range addrs {
		watchers = append(watchers, watchFrom(t, a))
	}
	for id := range 6 {
		l.mix(id)
	}
	for id := 6; id < 10; id++ {
		l.unique(id)
	}
	compactor := compactBehind(l, watchers)

	for time.Since(l.start) < *duration {
		at := time.Since(l.start)
		what := f.strike(t)
		t.Logf("%6.2fs %s, all ready after %.2fs", at.Seconds(), what, (time.Since(l.start) - at).Seconds())
		sleep(t.Context(), time.Duration(300+f.r.IntN(1200))*time.Millisecond)
	}
	faulty := time.Since(l.start)
	ops := l.stop()
	compactions := <-compactor

	rev := currentRev(t, l.members[0])
	var streams [][]event
	opened := int64(0)
	for i, w := range watchers {
		child.Eventually(t, limit, fmt.Sprintf("watcher %d reaches revision %d", i, rev), func() error {
			if got := w.rev.Load(); got < rev {
				return fmt.Errorf("it is at %d", got)
			}
			return nil
		})
		events, err := w.stop()
		if err != nil {
			t.Errorf("watcher %d: %v", i, err)
		}
		opened += w.streams.Load()
		streams = append(streams, events)
	}
	for i, s := range streams {
		if !slices.Equal(s, streams[0]) {
			t.Errorf("watchers 0 and %d have seen different events (%d and %d): %s", i, len(streams[0]), len(s), firstDifference(streams[0], s))
		}
	}
	events := streams[0]
	if len(events) == 0 || events[len(events)-1].rev != rev {
		t.Fatalf("the %d events do not end with revision %d", len(events), rev)
	}
	hash := equalHashes(t, l.members, rev)
	for i, m := range l.members {
		if err := holds(m, rev, ops, events); err != nil {
			t.Errorf("member %d: %v", i, err)
		}
	}
	if err := revisions(ops, events); err != nil {
		t.Error(err)
	}
	searched := time.Now()
	if err := linearizable(ops, events); err != nil {
		t.Error(err)
	}
	t.Logf("%.0fs of faults: %d members killed (%d times all at once), %d paused, %d elections", faulty.Seconds(),
		f.kills, f.blackouts, f.pauses, term(t, l.members)-firstTerm)
	t.Logf("%d operations acknowledged, %d without answer; longest time without an acknowledged write %v",
		l.acked.Load(), l.unknown.Load(), time.Duration(l.longest.Load()).Round(time.Millisecond))
	t.Logf("%d revisions, %d compactions, %d watch streams for 3 watchers, hash %08x on all members; search took %v",
		rev, compactions, opened, hash, time.Since(searched).Round(time.Millisecond))
	if f.kills == 0 || l.acked.Load() < 1000 {
		t.Errorf("%d kills and %d acknowledged operations prove nothing", f.kills, l.acked.Load())
	}
}

// compactBehind compacts now and then what every watcher has seen, until the load stops. It
// delivers how many compactions were acknowledged.
func compactBehind(l *load, watchers []*watcher) <-chan int {
	done := make(chan int, 1)
	go func() {
		n := 0
		for i := 0; ; i++ {
			sleep(l.ctx, 2*time.Second)
			if l.ctx.Err() != nil {
				done <- n
				return
			}
			rev := watchers[0].rev.Load()
			for _, w := range watchers {
				rev = min(rev, w.rev.Load())
			}
			ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
			if _, err := l.members[i%len(l.members)].Compact(ctx, &pb.CompactionRequest{Revision: max(1, rev-100)}); err == nil {
				n++
			}
			cancel()
		}
	}()
	return done
}

func term(t *testing.T, members []*child.Client) uint64 {
	t.Helper()
	var term uint64
	child.Eventually(t, limit, "a member tells its term", func() error {
		for _, c := range members {
			ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
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

func currentRev(t *testing.T, c *child.Client) int64 {
	t.Helper()
	var rev int64
	child.Eventually(t, limit, "a linearizable read", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
		defer cancel()
		r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("any")})
		if err == nil {
			rev = r.Header.Revision
		}
		return err
	})
	return rev
}

// equalHashes returns the hash that all members have of the keys at a revision.
func equalHashes(t *testing.T, members []*child.Client, rev int64) uint32 {
	t.Helper()
	got := make([]*pb.HashKVResponse, len(members))
	child.Eventually(t, limit, "all members are compacted alike", func() error {
		for i, c := range members {
			ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
			var err error
			got[i], err = c.Maintenance.HashKV(ctx, &pb.HashKVRequest{Revision: rev})
			cancel()
			if err != nil {
				return err
			}
			if got[i].CompactRevision != got[0].CompactRevision {
				return fmt.Errorf("member %d is compacted at %d, member 0 at %d", i, got[i].CompactRevision, got[0].CompactRevision)
			}
		}
		return nil
	})
	for i := range got {
		if got[i].Hash != got[0].Hash {
			t.Errorf("HashKV at revision %d: member %d %08x, member 0 %08x", rev, i, got[i].Hash, got[0].Hash)
		}
	}
	return got[0].Hash
}

// holds checks that a member has exactly the keys that the events leave, and every acknowledged
// key that was written once.
func holds(c *child.Client, rev int64, ops []op, events []event) error {
	want := map[string]event{}
	for _, e := range events {
		if e.value == "" {
			delete(want, e.key)
		} else {
			want[e.key] = e
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
	if err != nil {
		return fmt.Errorf("read everything: %w", err)
	}
	if len(r.Kvs) != len(want) {
		return fmt.Errorf("%d keys, the events leave %d", len(r.Kvs), len(want))
	}
	has := map[string]bool{}
	for _, kv := range r.Kvs {
		has[string(kv.Key)] = true
		if e := want[string(kv.Key)]; e.value != string(kv.Value) || e.rev != kv.ModRevision {
			return fmt.Errorf("%s is %.40q of revision %d, its last event %.40q of %d", kv.Key, kv.Value, kv.ModRevision, e.value, e.rev)
		}
	}
	n := 0
	for _, o := range ops {
		if o.known && o.kind == put && o.key[0] == 'u' {
			if n++; !has[o.key] {
				return fmt.Errorf("an acknowledged write is lost: %.200v", o)
			}
		}
	}
	if n == 0 {
		return errors.New("no unique write was acknowledged")
	}
	return nil
}

func firstDifference(a, b []event) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("event %d is %+v and %+v", i, a[i], b[i])
		}
	}
	return "one ends earlier"
}
