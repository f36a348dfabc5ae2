// Package proposal tracks requests from the time they are admitted until their result is
// known.
//
// In: requests of clients, then the results of applying them. Out: entries to propose, with
// id and encoding; each result to its caller. Always true: an admitted request gets exactly
// one outcome (a result, or an error when it expires or the member stops); the number of
// requests and bytes in flight never exceeds the limits: at the limit Admit refuses. A
// request that expires may still be committed later, so an expired request may have been
// executed or not.
package proposal

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/command"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// ErrTooMany is returned by Admit when too much is in flight.
var ErrTooMany = errors.New("proposal: too many requests in flight")

// ErrNotLeading is the outcome of a request that only the leader of a term may propose, and
// which this member, since deposed, has not proposed.
var ErrNotLeading = errors.New("proposal: this member does not lead any more")

// Result is the outcome of one request.
type Result struct {
	Resp any   // the response message of the request's kind
	Err  error // the request was refused, the same way on every member
	// Done delivers the result of a background task that the request started (a physical
	// compaction); nil if there is none.
	Done <-chan error
	// Began is when apply started on the batch that holds the request; zero if the
	// request was not applied.
	Began time.Time
}

// Pending is one request in flight. Its fields do not change after Admit, except for what
// Handed records.
type Pending struct {
	ID      uint64
	Req     *pb.InternalRaftRequest // decoded form, applied by the member that proposed it
	Foreign command.Foreign         // instead of Req, for a request with its own encoding
	Data    []byte                  // encoded form, for the log
	// ConfChange marks Data as an encoded raftpb.ConfChange; Req is nil then.
	ConfChange bool
	// Repeat allows the entry to be proposed again while it has no outcome: a second copy
	// in the log, however late, is refused or has no effect.
	Repeat bool
	// Term, if set, is the term in which this member leads and has decided to propose this:
	// the request fails with ErrNotLeading unless raft takes it in that term.
	Term ids.Term
	// Allowed, if set, is called before the entry is proposed again.
	Allowed  func() error
	Start    time.Time
	deadline time.Time
	// handed is when raft last accepted the entry, in Unix nanoseconds, 0 before.
	handed atomic.Int64
	done   chan Result // capacity 1: the resolver never blocks
}

// Carries reports whether data, from an entry with the id of p, is what p proposed. Another
// member may have generated the same id for a different entry. A v2 request also comes back
// in the form in which etcd members since 3.6 forward it, see v2request.Plain.
func (p *Pending) Carries(data []byte) bool {
	return bytes.Equal(p.Data, data) || p.Foreign != nil && p.Foreign.CarriedBy(data, p.Data)
}

// Handed records that raft has accepted the entry.
func (p *Pending) Handed(now time.Time) { p.handed.Store(now.UnixNano()) }

// Done delivers the outcome.
func (p *Pending) Done() <-chan Result { return p.done }

// shards reduces lock contention; ids are consecutive, so they spread evenly.
const shards = 16

// Table is the set of requests in flight. It is safe for concurrent use.
type Table struct {
	maxCount, maxBytes int64
	count, bytes       atomic.Int64
	shard              [shards]struct {
		mu    sync.Mutex
		m     map[uint64]*Pending
		ended error    // given to Close; nil before
		_     [24]byte // keeps shards on separate cache lines
	}
}

// NewTable returns a table that admits up to maxCount requests with up to
// maxBytes of entry data in total.
func NewTable(maxCount int, maxBytes int64) *Table {
	t := &Table{maxCount: int64(maxCount), maxBytes: maxBytes}
	for i := range t.shard {
		t.shard[i].m = make(map[uint64]*Pending)
	}
	return t
}

// Admit registers a request, which stays until Resolve, Fail, Forget or Expire removes it.
// It returns ErrTooMany at the limits and, after Close, the error given there.
func (t *Table) Admit(p *Pending, now time.Time, timeout time.Duration) error {
	if t.count.Add(1) > t.maxCount {
		t.count.Add(-1)
		return ErrTooMany
	}
	n := int64(len(p.Data))
	if t.bytes.Add(n) > t.maxBytes && t.count.Load() > 1 {
		t.bytes.Add(-n)
		t.count.Add(-1)
		return ErrTooMany
	}
	p.Start, p.deadline = now, now.Add(timeout)
	p.done = make(chan Result, 1)
	s := &t.shard[p.ID%shards]
	s.mu.Lock()
	ended := s.ended
	if ended == nil {
		s.m[p.ID] = p
		metrics.ServerProposalsPending.Inc()
	}
	s.mu.Unlock()
	if ended != nil {
		t.bytes.Add(-n)
		t.count.Add(-1)
	}
	return ended
}

func (t *Table) take(id uint64) *Pending {
	s := &t.shard[id%shards]
	s.mu.Lock()
	p := s.m[id]
	if p != nil {
		delete(s.m, id)
	}
	s.mu.Unlock()
	if p != nil {
		t.released(p)
	}
	return p
}

func (t *Table) released(p *Pending) {
	t.count.Add(-1)
	t.bytes.Add(-int64(len(p.Data)))
	metrics.ServerProposalsPending.Dec()
}

// Lookup returns the request if a caller on this member still waits for it, nil otherwise.
// The answer serves to skip decoding and reads whose result no one would see; it may be
// outdated by the time it is returned.
func (t *Table) Lookup(id uint64) *Pending {
	s := &t.shard[id%shards]
	s.mu.Lock()
	p := s.m[id]
	s.mu.Unlock()
	return p
}

// Resolve delivers the result to the caller. It is a no-op for requests of other members
// and for those that already have an outcome.
func (t *Table) Resolve(id uint64, r Result) {
	if p := t.take(id); p != nil {
		p.done <- r
	}
}

// Fail is Resolve with an error.
func (t *Table) Fail(id uint64, err error) { t.Resolve(id, Result{Err: err}) }

// Forget drops a request whose caller no longer waits.
func (t *Table) Forget(id uint64) { t.take(id) }

// Expire fails all requests that are past their deadline: with the error that why returns
// for the start time of each, or with context.DeadlineExceeded if raft never accepted it
// because there was no leader. The latter will certainly not be committed.
func (t *Table) Expire(now time.Time, why func(start time.Time) error) {
	t.sweep(func(p *Pending) bool { return now.After(p.deadline) }, func(p *Pending) error {
		if p.handed.Load() == 0 {
			return context.DeadlineExceeded
		}
		return why(p.Start)
	})
}

// FailOlder fails with err all requests that started d or longer ago, whatever their
// deadline.
func (t *Table) FailOlder(now time.Time, d time.Duration, err error) {
	t.sweep(func(p *Pending) bool { return now.Sub(p.Start) >= d }, func(*Pending) error { return err })
}

// FailHanded fails with err all requests that raft last accepted before the given time.
func (t *Table) FailHanded(before time.Time, err error) {
	t.sweep(func(p *Pending) bool {
		at := p.handed.Load()
		return at != 0 && at < before.UnixNano()
	}, func(*Pending) error { return err })
}

// Close fails all requests with err, and makes Admit return err from now on: no request is
// resolved after the member has stopped.
func (t *Table) Close(err error) {
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		s.ended = err
		s.mu.Unlock()
	}
	t.sweep(func(*Pending) bool { return true }, func(*Pending) error { return err })
}

func (t *Table) sweep(match func(*Pending) bool, why func(*Pending) error) {
	for i := range t.shard {
		s := &t.shard[i]
		var out []*Pending
		s.mu.Lock()
		for id, p := range s.m {
			if match(p) {
				out = append(out, p)
				delete(s.m, id)
			}
		}
		s.mu.Unlock()
		for _, p := range out {
			t.released(p)
			metrics.ServerProposalsFailedTotal.Inc()
			p.done <- Result{Err: why(p)}
		}
	}
}

// Len returns the number of requests in flight.
func (t *Table) Len() int { return int(t.count.Load()) }

// IDs generates request ids. If two members generate the same id, each may take the other's
// entry for its own. So the ids of a run start at a point of the whole 64-bit range that
// depends on every bit of the member id and of the start time: the probability that two
// runs ever overlap is below 1 in 2^20 for 2^43 requests each. etcd members count in the
// lower 48 bits, below 16 bits of their member id.
type IDs struct{ next atomic.Uint64 }

// NewIDs returns a generator for one run of a member.
func NewIDs(member ids.Member, now time.Time) *IDs {
	g := &IDs{}
	g.next.Store(mix(mix(uint64(member)) + uint64(now.UnixNano())))
	return g
}

// mix is a bijection in which every bit of x affects all bits (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Next returns a new id, never 0.
func (g *IDs) Next() uint64 {
	for {
		if id := g.next.Add(1); id != 0 {
			return id
		}
	}
}
