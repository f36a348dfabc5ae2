package watch

import (
	"sync"

	"quorate/internal/ids"
)

// maxBatch is the number of responses that are taken from a queue at a time.
const maxBatch = 64

// Batch is a number of responses in the order in which they have to be sent. Watchers of one
// stream that match the same event cause a series of small responses that differ in the
// watch ID alone: taking and encoding them together costs a fraction.
type Batch struct {
	Responses []Response
	Encoded   int // bytes that Append has appended
	items     []item

	header Header
	rev    ids.Revision // of head
	head   []byte       // the encoded header, empty before the first use
}

// A stream without events needs no batch, so the pool has as many as are in use.
var batches = sync.Pool{New: func() any {
	return &Batch{Responses: make([]Response, 0, maxBatch), items: make([]item, 0, maxBatch)}
}}

// NewBatch returns a batch that contains r. It must be freed.
func NewBatch(r Response, h Header) *Batch {
	b := batches.Get().(*Batch)
	b.Responses, b.Encoded, b.header, b.head = append(b.Responses[:0], r), 0, h, b.head[:0]
	return b
}

// Free ends the use of the batch.
func (b *Batch) Free() {
	b.Clear()
	batches.Put(b)
}

// Header is the header of the responses.
func (b *Batch) Header() Header { return b.header }

// Clear makes room for other responses.
func (b *Batch) Clear() {
	clear(b.Responses)
	b.Responses = b.Responses[:0]
}

// Take adds responses that are queued to b, as far as there is room, and reports whether
// there are others.
func (s *Stream) Take(b *Batch) (more bool, err error) {
	for len(s.rest.Events) > 0 && len(b.Responses) < maxBatch {
		b.Responses = append(b.Responses, s.fragment())
	}
	if len(s.rest.Events) > 0 {
		return true, nil
	}
	if more, err = s.popSome(b); err != nil {
		return false, err
	}
	events, shared := 0, int32(0)
	for i := range b.items {
		it := &b.items[i]
		r := s.open(it)
		events += len(r.Events)
		if it.w != nil && it.w.fragment && s.hub.tooLarge(r.Events) {
			s.rest = r // popSome stops at such an item
			r, more = s.fragment(), true
		}
		b.Responses = append(b.Responses, r)
		if shared++; i+1 == len(b.items) || b.items[i+1].chunk != it.chunk {
			if it.chunk != nil {
				s.hub.release(it.chunk, shared)
			}
			shared = 0
		}
	}
	clear(b.items)
	b.items = b.items[:0]
	countSent(events)
	return more, nil
}

// popSome takes the first items, up to and including one that may have to be split, and
// reports whether there are others.
func (s *Stream) popSome(b *Batch) (more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false, ErrClosed
	}
	for room := maxBatch - len(b.Responses); room > 0 && s.head < len(s.queue); room-- {
		it := s.popLocked()
		b.items = append(b.items, it)
		if it.chunk != nil && it.w.fragment {
			break
		}
	}
	return s.head < len(s.queue), nil
}

// Most is an upper bound for the encoded length of response i.
func (b *Batch) Most(i int) int { return b.Responses[i].most() }

// Append appends the encoded response i. It is used by one goroutine.
func (b *Batch) Append(dst []byte, i int) []byte {
	r, from := &b.Responses[i], len(dst)
	if len(b.head) == 0 || b.rev != r.Revision {
		b.head, b.rev = b.header.appendAt(b.head[:0], r.Revision), r.Revision
	}
	dst = r.appendRest(append(dst, b.head...))
	for _, e := range r.Events {
		dst = append(dst, e...)
	}
	b.Encoded += len(dst) - from
	return dst
}

// mostHead is an upper bound for a response without its events and cancel reason: a header
// of four numbers, three more numbers, and flags.
const mostHead = 96

func (r *Response) most() int {
	n := mostHead + len(r.CancelReason)
	for _, e := range r.Events {
		n += len(e)
	}
	return n
}
