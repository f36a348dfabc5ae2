// Package readindex batches linearizable reads into few quorum rounds.
//
// In: readers, confirmations from the consensus core, the applied index. Out: for each
// reader, the moment at which it may read. Always true: a reader proceeds only after a round
// that started after it joined was confirmed and everything committed by then is applied
// on this member, so it sees every write that was acknowledged before it asked. One round
// is in flight at a time; readers that join meanwhile share the next one.
package readindex

import (
	"encoding/binary"
	"sync"
	"time"

	"quorate/internal/ids"
)

// Round is one quorum confirmation, shared by many readers.
type Round struct {
	done  chan struct{}
	err   error // set before done closes
	asked time.Time
	// since is no later than the first reader joined, and earlier by at most one round.
	since time.Time
}

// Done closes when the readers of the round may read or have failed.
func (r *Round) Done() <-chan struct{} { return r.done }

// Err returns why the round failed, nil if its readers may read. Only valid after Done is
// closed.
func (r *Round) Err() error { return r.err }

func (r *Round) finish(err error) { r.err = err; close(r.done) }

type confirmed struct {
	index ids.Index
	round *Round
}

// Batcher holds the open round and those in progress. It is safe for concurrent use.
type Batcher struct {
	mu      sync.Mutex
	open    *Round   // collects readers; nil without readers
	flight  *Round   // requested, not confirmed
	ids     []uint64 // every request id used for the round in flight
	sentAt  time.Time
	waiting []confirmed // confirmed, waiting for apply; ascending by index
	applied ids.Index
	ended   error // given to Close; nil before
	nextID  func() uint64
}

// New returns a batcher. nextID generates the ids of requests to the core; applied is the
// applied index at start.
func New(nextID func() uint64, applied ids.Index) *Batcher {
	return &Batcher{nextID: nextID, applied: applied}
}

// Join adds the caller to the open round. first reports that the core has to be told to
// start it: the round is new and none is in flight. After Close, Join returns a round that
// has failed with the error given to Close.
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

// Start puts the open round in flight and returns the context to pass to raft's
// ReadIndex, or nil if there is nothing to start.
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

// Retry returns a new context for the round in flight if there was no answer for d (at once
// if d is 0), nil otherwise. timedOut reports that the round was older than limit and has
// failed with errTimeout.
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

// Confirm processes raft's answer for a context. Answers for older rounds are ignored. more
// reports that another round is waiting to start.
func (b *Batcher) Confirm(ctx []byte, index ids.Index) (more bool) {
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

// Applied completes the confirmed rounds that waited for index or a lower one.
func (b *Batcher) Applied(index ids.Index) {
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

// FailInFlight fails the round in flight with err, because the leader has changed. Readers
// of the open round stay. more reports that there is one.
func (b *Batcher) FailInFlight(err error) (more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flight != nil {
		b.flight.finish(err)
		b.flight = nil
	}
	return b.open != nil
}

// FailOlder fails with err all rounds whose readers may have waited for d or longer,
// including those that only wait for apply. more reports that another round is waiting to
// start.
func (b *Batcher) FailOlder(now time.Time, d time.Duration, err error) (failed int, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := func(r *Round) bool { return now.Sub(r.since) >= d }
	n := 0
	for n < len(b.waiting) && old(b.waiting[n].round) { // ascending by start, too
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

// Close fails all rounds with err, also those of readers that join later: no round is
// confirmed after the member has stopped.
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
