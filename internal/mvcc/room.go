package mvcc

import (
	"math/bits"
	"sync"
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
	r.poison()
	if r.tier >= 0 {
		rooms[r.tier].Put(r)
	}
}

func (r *room) poison() {
	if poison {
		for i := range r.b {
			r.b[i] = 0xdb
		}
	}
}
