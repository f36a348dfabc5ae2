package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/history"
)

// actLength is about how long one cluster lives: histories stay small enough to be checked.
const actLength = 75 * time.Second

// Clusters of three and five, in part with a real etcd in one seat, under faults of every kind at the same time:
// what was acknowledged stays, histories are linearizable, watchers miss nothing, leases hold, members are equal.
func TestChaos(t *testing.T) {
	seed := fmt.Sprintf("-seed=%d", *seedFlag)
	if !child.Isolated(t, *required, "-etcd="+ours, "-real="+real, seed) {
		if t.Failed() {
			t.Logf("again: make chaos SEED=%d", *seedFlag)
		}
		return
	}
	t.Logf("seed %d", *seedFlag)
	// ip keeps the names of namespaces in /run/netns. Only this process sees this mount.
	child.Must(t, "mount", "-t", "tmpfs", "none", "/run")
	r := rand.New(rand.NewPCG(*seedFlag, 0))
	for start, n := time.Now(), 0; time.Since(start) < *duration && !t.Failed(); n++ {
		length := min(actLength, *duration-time.Since(start))
		size := 3
		if n%4 == 3 {
			size = 5
		}
		seats := slices.Repeat([]string{ours}, size)
		if (uint64(n)+*seedFlag)%2 == 1 {
			seats[r.IntN(size)] = real
		}
		t.Run(fmt.Sprint("act", n), func(t *testing.T) { act(t, seats, r.Uint64(), length) })
	}
}

// act is the life of one cluster.
func act(t *testing.T, binaries []string, seed uint64, length time.Duration) {
	dir, err := os.MkdirTemp("", "chaos")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	memory := filepath.Join(dir, "memory")
	if err := os.Mkdir(memory, 0o700); err != nil {
		t.Fatal(err)
	}
	child.Must(t, "mount", "-t", "tmpfs", "none", memory)
	t.Cleanup(func() { child.Must(t, "umount", "--lazy", memory) })

	r := rand.New(rand.NewPCG(seed, 3))
	w := newWire(t, len(binaries), seed)
	flags := []string{fmt.Sprintf("--snapshot-count=%d", []int{300, 1000, 10000}[r.IntN(3)]),
		fmt.Sprintf("--snapshot-catchup-entries=%d", []int{50, 300, 5000}[r.IntN(3)])}
	c := newCluster(t, w, dir, memory, binaries, flags...)
	c.healthy()
	var members []*child.Client
	var watchers []*history.Watcher
	for _, m := range c.members {
		members = append(members, m.client)
		watchers = append(watchers, history.Watch(t, func() *child.Client { return m.client }))
	}
	l := history.NewLoad(members, seed)
	turn := 0
	watchers = append(watchers, history.Watch(t, func() *child.Client { turn++; return members[turn%len(members)] }))
	n := newNemesis(c, l, seed)
	defer func() {
		n.heal() // also when the test ends early: a killed process waits for a frozen disk
		l.Stop()
		if t.Failed() {
			t.Logf("the last faults:\n%s", n)
			to := *keep
			if to == "" {
				to = filepath.Join(os.TempDir(), fmt.Sprintf("chaos-%d", *seedFlag))
			}
			c.save(to)
		}
	}()
	for id := range 6 {
		l.Mix(id)
	}
	for id := 6; id < 9; id++ {
		l.Unique(id, 5*time.Millisecond)
	}
	leases := history.StartLeases(l, seed)
	compactions := history.CompactBehind(l, watchers, nil)
	for l.Since() < length {
		n.round(min(roundLength, max(time.Second, length-l.Since())))
	}
	leases.Enough(t, limit)
	l.Stop()
	leases.Settle(t, limit, members[0])
	rev, hash, _ := history.Verdict(t, limit, l, watchers, members)
	c.uncorrupted()
	c.logs()
	streams := int64(0)
	for _, w := range watchers {
		streams += w.Streams()
	}
	t.Logf("%d members, %v; faults: %v", len(binaries), flags, n.counts)
	t.Logf("%d operations acknowledged, %d without answer; longest time without an acknowledged write %v", l.Acked.Load(), l.Unknown.Load(), l.Longest().Round(time.Millisecond))
	t.Logf("%d revisions, %d compactions, %d watch streams for %d watchers; hash %08x on all members", rev, <-compactions, streams, len(watchers), hash)
	t.Log(w)
	if c.clocks != nil {
		t.Logf("wall clocks do not jump: %v", c.clocks)
	}
	if len(n.counts) == 0 || l.Acked.Load() < 200 {
		t.Errorf("%v faults and %d acknowledged operations prove nothing", n.counts, l.Acked.Load())
	}
}
