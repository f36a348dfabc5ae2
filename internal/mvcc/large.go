package mvcc

import (
	"sync/atomic"
	"time"

	"quorate/internal/clock"
)

// largeMemory is the memory for large pieces of lists. It is outside the heap, where it
// would cause a collection and be cleared first. Its records are written in random order:
// with huge pages that takes few page faults.
type largeMemory struct {
	clock clock.Clock
	used  atomic.Int64 // bytes of the allowance that lists hold
	spare atomic.Pointer[room]
}

const (
	mapped = -2 // tier of a room outside the heap
	// keepSpare is how long memory stays mapped after a list, for the next one. New
	// memory costs as much as half of the reading.
	keepSpare = 10 * time.Second
)

// take reserves up to n bytes and returns how many; 0 if too few are available.
func (m *largeMemory) take(n int64) int64 {
	for {
		used := m.used.Load()
		got := min(n, largePieces-used)
		if got < leastLarge {
			return 0
		}
		if m.used.CompareAndSwap(used, used+got) {
			return got
		}
	}
}

func (m *largeMemory) giveBack(n int64) { m.used.Add(-n) }

// get returns a room of at least n bytes. Of a larger one that was kept, the rest goes back
// to the system: all rooms together take what their lists have reserved, and not, for each
// small list, what some large one before it needed.
func (m *largeMemory) get(n int) *room {
	if r := m.spare.Swap(nil); r != nil {
		if len(r.b) >= n && dropMemory(r.b, n) {
			return r
		}
		unmapMemory(r.b)
	}
	if b := mapMemory(n); b != nil {
		return &room{b: b, tier: mapped}
	}
	return getRoom(n)
}

// put takes back a room. It must not be used any more.
func (m *largeMemory) put(r *room) {
	if r.tier != mapped {
		r.put()
		return
	}
	r.poison()
	if old := m.spare.Swap(r); old != nil {
		unmapMemory(old.b)
	}
	m.clock.AfterFunc(keepSpare, func() {
		if m.spare.CompareAndSwap(r, nil) {
			unmapMemory(r.b)
		}
	})
}
