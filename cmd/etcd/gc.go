package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapRoom is how much garbage may accumulate before a collection. With Go's default a
	// member with few keys would collect several times a second.
	heapRoom = 96 << 20
	// leastPercent bounds the memory of a member with many keys: its garbage is at most
	// this share of the live heap.
	leastPercent = 60
	gcInterval   = time.Second
)

// paceGC trades memory for CPU while the live heap is small, and CPU for memory when it is
// large. It does nothing if GOGC is set.
func paceGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	ticker := time.NewTicker(gcInterval)
	defer ticker.Stop()
	last := -1
	for {
		metrics.Read(live)
		if percent := gcPercent(live[0].Value.Uint64()); percent != last {
			debug.SetGCPercent(percent)
			last = percent
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// gcPercent returns the GOGC value for a live heap, in steps, so that it does not follow
// every small change.
func gcPercent(live uint64) int {
	percent := int(heapRoom * 100 / max(live, heapRoom/8))
	return max(percent/20*20, leastPercent)
}
