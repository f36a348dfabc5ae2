package main

import (
	"runtime"
	"testing"
	"time"
)

func TestGCPercentBoundsGarbage(t *testing.T) {
	for _, live := range []uint64{0, 1 << 20, 20 << 20, 96 << 20, 300 << 20, 10 << 30} {
		p := gcPercent(live)
		if p < leastPercent {
			t.Errorf("live %d: %d%%, less than %d%%", live, p, leastPercent)
		}
		if garbage := max(live, heapRoom/8) * uint64(p) / 100; p > leastPercent && garbage > heapRoom {
			t.Errorf("live %d: %d bytes of garbage, more than %d", live, garbage, heapRoom)
		}
	}
	if few, many := gcPercent(10<<20), gcPercent(500<<20); few <= many {
		t.Errorf("a small heap gets %d%%, a large one %d%%", few, many)
	}
}

// The percentage follows every collection, not the clock.
func TestAfterGC(t *testing.T) {
	c := make(chan struct{}, 1)
	for range 3 {
		afterGC(c)
		runtime.GC()
		select {
		case <-c:
		case <-time.After(30 * time.Second):
			t.Fatal("a collection was not noticed")
		}
	}
}
