package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapRoom is how much garbage may gather before it is collected. With Go's
	// default a member with few keys would collect several times a second.
	heapRoom = 96 << 20
	// leastPercent bounds the memory of a member with many keys: garbage up to so
	// much of what is live.
	leastPercent = 60
	gcInterval   = time.Second
)

// paceGC trades memory for CPU as long as the live heap is small, and CPU for
// memory when it is large. It leaves a GOGC that was set alone.
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

// gcPercent returns the GOGC for a live heap, in steps that do not follow each
// small change.
func gcPercent(live uint64) int {
	percent := int(heapRoom * 100 / max(live, heapRoom/8))
	return max(percent/20*20, leastPercent)
}
