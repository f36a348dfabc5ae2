package sim

import (
	"testing"
	"testing/cryptotest"
	"time"

	"quorate/internal/membership"
)

// Members propose to remove each other, concurrently and repeatedly. The strict check asks
// for a quorum of the remaining members each time, so a working cluster is left; without
// it, one member is.
func TestRivals(t *testing.T) {
	removed := 0
	for s := *seed; s < *seed+*seeds; s++ {
		cryptotest.SetGlobalRandom(t, s)
		w := newWorld(s, Faults{MinDelay: time.Millisecond, MaxDelay: 30 * time.Millisecond, SyncDelay: 8 * time.Millisecond, ApplyDelay: 100 * time.Millisecond,
			Loss: 0.02, Duplication: 0.02}, nil)
		w.strict = s%2 == 0
		if err := w.populate(2+int(s%4), 2); err != nil {
			t.Fatal(err)
		}
		for _, n := range w.nodes {
			n.start()
		}
		for _, c := range w.clients {
			c.pause()
		}
		w.run(4 * time.Second)
		for round := 0; round < 40 && w.err == nil; round++ {
			for range 2 {
				via, n := w.nodes[w.rng.IntN(len(w.nodes))], w.nodes[w.rng.IntN(len(w.nodes))]
				if !via.down && via.joined() {
					w.propose(via, "remove", n, membership.RemoveChange(n.id))
				}
			}
			w.run(w.between(0, 2*time.Second))
		}
		w.run(2 * requestTimeout)
		left := w.members()
		if w.err != nil || len(left) == 0 {
			t.Fatalf("%d members left: %v", len(left), w.err)
		}
		t.Logf("seed %d: of %d members %d are left", s, 2+s%4, len(left))
		removed += len(w.gone)
		before := left[0].machine.Applied()
		w.run(2 * requestTimeout)
		if left[0].machine.Applied() == before {
			t.Errorf("seed %d: the remaining members make no progress", s)
		}
	}
	if removed < int(*seeds) {
		t.Errorf("%d removals in %d runs: the runs prove nothing about them", removed, *seeds)
	}
}
