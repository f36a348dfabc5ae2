package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// heapRoom is how much garbage may accumulate before a collection. With Go's default a
	// member with few keys would collect several times a second.
	heapRoom = 96 << 20
	// leastPercent bounds the memory of a member with many keys: its garbage is at most
	// this share of the live heap.
	leastPercent = 60
)

// paceGC trades memory for CPU while the live heap is small, and CPU for memory when it is
// large. It does nothing if GOGC is set.
//
// It follows each collection: in a second a client can make a small heap grow to several times
// the room that a small heap may waste.
func paceGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	collected := make(chan struct{}, 1)
	last := -1
	for {
		afterGC(collected)
		metrics.Read(live)
		if percent := gcPercent(live[0].Value.Uint64()); percent != last {
			debug.SetGCPercent(percent)
			last = percent
		}
		select {
		case <-collected:
		case <-ctx.Done():
			return
		}
	}
}

// afterGC sends on c, which must have room, after the next collection.
func afterGC(c chan<- struct{}) {
	// Without a pointer the object could share its memory with others that live longer.
	garbage := &struct{ p *byte }{}
	runtime.AddCleanup(garbage, func(c chan<- struct{}) {
		select {
		case c <- struct{}{}:
		default:
		}
	}, c)
}

// gcPercent returns the GOGC value for a live heap, in steps, so that it does not follow
// every small change.
func gcPercent(live uint64) int {
	percent := int(heapRoom * 100 / max(live, heapRoom/8))
	return max(percent/20*20, leastPercent)
}
