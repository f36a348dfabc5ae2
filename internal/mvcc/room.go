package mvcc

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// room is reusable memory for a piece of a list. Its content is undefined.
type room struct {
	b    []byte
	tier int
}

const (
	smallestRoom = 12 // 4 KiB
	largestRoom  = 22 // 4 MiB
)

var rooms [largestRoom - smallestRoom + 1]sync.Pool

// getRoom returns a room of at least n bytes.
func getRoom(n int) *room {
	tier := max(bits.Len(uint(n-1))-smallestRoom, 0)
	if n <= 0 || tier >= len(rooms) {
		return &room{b: make([]byte, n), tier: -1}
	}
	if r, ok := rooms[tier].Get().(*room); ok {
		return r
	}
	return &room{b: make([]byte, 1<<(tier+smallestRoom)), tier: tier}
}

// put returns the room to its pool.
func (r *room) put() {
	if poison {
		for i := range r.b {
			r.b[i] = 0xdb
		}
	}
	if r.tier >= 0 {
		rooms[r.tier].Put(r)
	}
}

// allowance tracks how much of the memory for large pieces is in use.
type allowance struct{ used atomic.Int64 }

// take reserves up to n bytes and returns how many; 0 if too few are available.
func (a *allowance) take(n int64) int64 {
	for {
		used := a.used.Load()
		got := min(n, largePieces-used)
		if got < leastLarge {
			return 0
		}
		if a.used.CompareAndSwap(used, used+got) {
			return got
		}
	}
}

func (a *allowance) giveBack(n int64) { a.used.Add(-n) }
