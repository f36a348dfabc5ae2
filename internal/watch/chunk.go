package watch

import (
	"sort"
	"sync"
	"sync/atomic"

	"quorate/internal/ids"
)

// chunk holds the events of one response, shared by the watchers of a group. The first
// consumer that takes it from a queue encodes it, so the apply goroutine neither encodes nor
// reads previous values.
type chunk struct {
	events []*event // ordered; never empty
	prevKV bool
	size   int
	refs   atomic.Int32 // references held by queues and by the creator

	mu      sync.Mutex // guards encoding
	encoded atomic.Pointer[[][]byte]

	// Space for the most common chunk, with one event.
	oneEvent   [1]*event
	oneEncoded [1][]byte
}

// newChunk copies the slice, and adds the size of the chunk to h.pending. The caller must
// release the chunk.
func (h *Hub) newChunk(events []*event, prevKV bool) *chunk {
	c := &chunk{prevKV: prevKV}
	c.events = append(c.oneEvent[:0], events...)
	for _, e := range events {
		c.size += e.size()
	}
	if prevKV {
		c.size *= 2
	}
	c.refs.Store(1)
	h.pending.Add(int64(c.size))
	return c
}

// release drops n references.
func (h *Hub) release(c *chunk, n int32) {
	if c.refs.Add(-n) == 0 {
		h.pending.Add(-int64(c.size))
	}
}

func (c *chunk) last() ids.Revision { return c.events[len(c.events)-1].Mod }

// below returns the number of events below rev.
func (c *chunk) below(rev ids.Revision) int {
	if c.events[0].Mod >= rev {
		return 0
	}
	return sort.Search(len(c.events), func(i int) bool { return c.events[i].Mod >= rev })
}

// encode returns the encoded events, with prev_kv if the group wants it. They are encoded
// once.
func (c *chunk) encode(h *Hub) [][]byte {
	if p := c.encoded.Load(); p != nil {
		return *p
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.encoded.Load(); p != nil {
		return *p
	}
	out := c.oneEncoded[:]
	if len(c.events) > 1 {
		out = make([][]byte, len(c.events))
	}
	for i, e := range c.events {
		if c.prevKV {
			out[i] = e.encoded(h.prevKV)
		} else {
			out[i] = e.encoded(nil)
		}
	}
	c.encoded.Store(&out)
	return out
}
