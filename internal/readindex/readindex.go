// Package readindex turns many linearizable reads into few quorum rounds.
//
// In: readers, confirmations from the consensus core, the applied index. Out:
// the moment at which each reader may read. Always true: a reader is let
// through only after a round that began after it joined was confirmed and
// everything committed by then is applied here, so it sees every write that was
// acknowledged before it asked. One round is in flight at a time; those who come
// meanwhile share the next one.
package readindex

import (
	"encoding/binary"
	"sync"
	"time"
)

// Round is one quorum confirmation that many readers share.
type Round struct {
	done  chan struct{}
	err   error // set before done closes
	asked time.Time
	// since is before the first reader joined, by no more than one round.
	since time.Time
}

// Done closes when the readers of the round may read or have failed.
func (r *Round) Done() <-chan struct{} { return r.done }

// Err tells why the round failed; nil means: read. Only valid after Done.
func (r *Round) Err() error { return r.err }

func (r *Round) finish(err error) { r.err = err; close(r.done) }

type confirmed struct {
	index uint64
	round *Round
}

// Batcher holds the open round and the ones under way. Safe for concurrent use.
type Batcher struct {
	mu      sync.Mutex
	open    *Round   // collects readers; nil when nobody waits
	flight  *Round   // asked for, not yet confirmed
	ids     []uint64 // every request id used for the round in flight
	sentAt  time.Time
	waiting []confirmed // confirmed, waiting for apply; ascending by index
	applied uint64
	ended   error // what Close has left for those who come too late
	nextID  func() uint64
}

// New returns a batcher; nextID numbers the requests to the core, and applied is
// the index that is applied at start.
func New(nextID func() uint64, applied uint64) *Batcher {
	return &Batcher{nextID: nextID, applied: applied}
}

// Join adds the caller to the open round. first reports that the round was
// empty before, so the core has to be told that there is work. After Close the
// round is over, with the error given there.
func (b *Batcher) Join() (r *Round, first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != nil {
		r = &Round{done: make(chan struct{})}
		r.finish(b.ended)
		return r, false
	}
	if b.open == nil {
		b.open = &Round{done: make(chan struct{})}
		if first = b.flight == nil; !first {
			b.open.since = b.flight.asked
		}
	}
	return b.open, first
}

// Start moves the open round into flight and returns the context to hand to
// raft's ReadIndex, or nil if there is nothing to start.
func (b *Batcher) Start(now time.Time) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flight != nil || b.open == nil {
		return nil
	}
	b.flight, b.open = b.open, nil
	b.ids = b.ids[:0]
	b.flight.asked = now
	if b.flight.since.IsZero() {
		b.flight.since = now
	}
	return b.askLocked(now)
}

// Retry returns a fresh context for the round in flight if it has gone without
// an answer for d, or at once when d is 0; nil otherwise. timedOut reports that
// the round is older than limit and was failed with errTimeout.
func (b *Batcher) Retry(now time.Time, d, limit time.Duration, errTimeout error) (ctx []byte, timedOut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flight == nil {
		return nil, false
	}
	if limit > 0 && now.Sub(b.flight.asked) >= limit {
		b.flight.finish(errTimeout)
		b.flight = nil
		return nil, true
	}
	if now.Sub(b.sentAt) < d {
		return nil, false
	}
	return b.askLocked(now), false
}

func (b *Batcher) askLocked(now time.Time) []byte {
	id := b.nextID()
	b.ids = append(b.ids, id)
	b.sentAt = now
	return binary.BigEndian.AppendUint64(nil, id)
}

// Confirm takes raft's answer for a context. Answers for older rounds are
// ignored. more reports that another round waits to be started.
func (b *Batcher) Confirm(ctx []byte, index uint64) (more bool) {
	if len(ctx) != 8 {
		return false
	}
	id := binary.BigEndian.Uint64(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flight == nil {
		return false
	}
	for _, x := range b.ids {
		if x != id {
			continue
		}
		r := b.flight
		b.flight = nil
		if index <= b.applied {
			r.finish(nil)
		} else {
			b.waiting = append(b.waiting, confirmed{index, r})
		}
		return b.open != nil
	}
	return false
}

// Applied lets everyone through who waited for index or less.
func (b *Batcher) Applied(index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applied = max(b.applied, index)
	n := 0
	for n < len(b.waiting) && b.waiting[n].index <= index {
		b.waiting[n].round.finish(nil)
		n++
	}
	b.waiting = append(b.waiting[:0], b.waiting[n:]...)
}

// FailInFlight ends the round in flight with err (the leader changed). Readers
// that have joined since stay. more reports that they wait to be started.
func (b *Batcher) FailInFlight(err error) (more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flight != nil {
		b.flight.finish(err)
		b.flight = nil
	}
	return b.open != nil
}

// FailOlder ends the rounds whose readers may have waited for d or longer, also those that only wait
// for apply, with err. more reports that readers wait to be started.
func (b *Batcher) FailOlder(now time.Time, d time.Duration, err error) (failed int, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := func(r *Round) bool { return now.Sub(r.since) >= d }
	n := 0
	for n < len(b.waiting) && old(b.waiting[n].round) { // they began in this order
		b.waiting[n].round.finish(err)
		n++
	}
	b.waiting = append(b.waiting[:0], b.waiting[n:]...)
	if b.flight != nil && old(b.flight) {
		b.flight.finish(err)
		b.flight = nil
		n++
	}
	return n, b.flight == nil && b.open != nil
}

// Close ends every reader with err, now and from now on: nobody confirms a round
// after the member has stopped.
func (b *Batcher) Close(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = err
	for _, r := range []*Round{b.flight, b.open} {
		if r != nil {
			r.finish(err)
		}
	}
	for _, w := range b.waiting {
		w.round.finish(err)
	}
	b.flight, b.open, b.waiting = nil, nil, nil
}
