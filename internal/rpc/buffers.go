package rpc

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// buffers is a mem.BufferPool of power-of-two sizes. gRPC's own pool clears its buffers,
// and returns a megabyte for anything above 32 KiB; all users of this one overwrite the
// buffer anyway. Buffers larger than the largest tier are not pooled, so the pool retains
// little after a burst.
type buffers struct {
	tiers [largestTier - smallestTier + 1]sync.Pool
}

const (
	smallestTier = 8  // 256 bytes
	largestTier  = 16 // 64 KiB
)

var pool buffers

var _ mem.BufferPool = &pool

// Get returns a buffer of n bytes with arbitrary content.
func (p *buffers) Get(n int) *[]byte {
	tier := max(bits.Len(uint(n-1)), smallestTier)
	if n <= 0 || tier > largestTier {
		b := make([]byte, n)
		return &b
	}
	if b, ok := p.tiers[tier-smallestTier].Get().(*[]byte); ok {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<tier)
	return &b
}

// Put returns a buffer to the pool.
func (p *buffers) Put(b *[]byte) {
	tier := bits.Len(uint(cap(*b))) - 1
	if tier >= smallestTier && tier <= largestTier && cap(*b) == 1<<tier {
		p.tiers[tier-smallestTier].Put(b)
	}
}
