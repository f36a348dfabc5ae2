package mvcc

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// room is memory for a piece of a list. It is used again and has any content.
type room struct {
	b    []byte
	tier int
}

const (
	smallestRoom = 12 // 4 KiB
	largestRoom  = 22 // 4 MiB
)

var rooms [largestRoom - smallestRoom + 1]sync.Pool

// getRoom returns room for n bytes.
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

// put gives the room back.
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

// allowance is what large pieces have of the memory that they may have.
type allowance struct{ used atomic.Int64 }

// take returns how much of n bytes there is, 0 if that is too little to be of use.
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
