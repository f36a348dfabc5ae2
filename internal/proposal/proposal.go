// Package proposal keeps the requests that are on their way through the log.
//
// In: requests of clients, then the results of applying them. Out: entries to
// propose, numbered and encoded; each result to the one who waits for it.
// Always true: a request that was admitted gets exactly one outcome (a result,
// or an error when it expires or the member stops), and the number of requests
// and bytes in flight never passes the limits: at the limit Admit refuses.
// A request that expires may still be committed later; its outcome is unknown,
// not negative.
package proposal

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/legacy/v2request"
	"quorate/internal/metrics"
)

// ErrTooMany is returned by Admit when too much is in flight.
var ErrTooMany = errors.New("proposal: too many requests in flight")

// Result is the outcome of applying one request.
type Result struct {
	Resp any   // the response message of the request's kind
	Err  error // the request was refused, the same way on every member
	// Done tells how what the request started in the background has ended (a
	// physical compaction); nil otherwise.
	Done <-chan error
	// Began is when the batch began to be applied that the request is in; zero
	// if it was not.
	Began time.Time
}

// Pending is one request in flight. Its fields do not change after Admit,
// but for what Handed notes.
type Pending struct {
	ID   uint64
	Req  *pb.InternalRaftRequest // decoded form, applied by the member that proposed it
	V2   *v2request.Request      // instead of Req, for a request of the v2 API
	Data []byte                  // encoded form, for the log
	// ConfChange marks Data as an encoded raftpb.ConfChange; Req is nil then.
	ConfChange bool
	// Repeat allows to propose the entry again while it has no outcome: a second
	// copy in the log, however late, is refused or changes nothing.
	Repeat bool
	// Allowed, if set, is asked before the entry is proposed again.
	Allowed  func() error
	Start    time.Time
	deadline time.Time
	// handed is when raft took the entry last, as unix nanoseconds, 0 before.
	handed atomic.Int64
	done   chan Result // capacity 1: the resolver never waits
}

// Carries reports whether data, the data of an entry with the number of p, is what p
// proposed. Another member may have handed out the number as well, and its entry is
// another one. Of a v2 request it is also the form that members of today pass on.
func (p *Pending) Carries(data []byte) bool {
	return bytes.Equal(p.Data, data) || p.V2 != nil && bytes.Equal(p.Data, v2request.Plain(data))
}

// Handed notes that raft has taken the entry.
func (p *Pending) Handed(now time.Time) { p.handed.Store(now.UnixNano()) }

// Done delivers the outcome.
func (p *Pending) Done() <-chan Result { return p.done }

// shards spreads the lock over the callers; ids are consecutive.
const shards = 16

// Table is the set of requests in flight. Safe for concurrent use.
type Table struct {
	maxCount, maxBytes int64
	count, bytes       atomic.Int64
	shard              [shards]struct {
		mu    sync.Mutex
		m     map[uint64]*Pending
		ended error    // what Close has left for those who come too late
		_     [24]byte // keep neighbours off one cache line
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

// Admit registers a request until Resolve, Fail or Expire ends it. After Close
// it returns the error given there.
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

// Lookup returns the request if somebody here waits for it. The answer helps to
// skip decoding and reads whose result nobody would see; it may be outdated at
// once.
func (t *Table) Lookup(id uint64) *Pending {
	s := &t.shard[id%shards]
	s.mu.Lock()
	p := s.m[id]
	s.mu.Unlock()
	return p
}

// Resolve hands the result to the caller; it is a no-op for requests of other
// members and for those that have ended.
func (t *Table) Resolve(id uint64, r Result) {
	if p := t.take(id); p != nil {
		p.done <- r
	}
}

// Fail ends one request with err, as Resolve does with a result.
func (t *Table) Fail(id uint64, err error) { t.Resolve(id, Result{Err: err}) }

// Forget drops a request whose caller has gone away.
func (t *Table) Forget(id uint64) { t.take(id) }

// Expire ends all requests whose time is up: with the error that why returns for
// the start time of each, or with context.DeadlineExceeded if raft never took it,
// because there was no leader; that one will surely not be committed.
func (t *Table) Expire(now time.Time, why func(start time.Time) error) {
	t.sweep(func(p *Pending) bool { return now.After(p.deadline) }, func(p *Pending) error {
		if p.handed.Load() == 0 {
			return context.DeadlineExceeded
		}
		return why(p.Start)
	})
}

// FailOlder ends all requests that began d or longer ago with err, whatever time
// they have left.
func (t *Table) FailOlder(now time.Time, d time.Duration, err error) {
	t.sweep(func(p *Pending) bool { return now.Sub(p.Start) >= d }, func(*Pending) error { return err })
}

// FailHanded ends all requests that raft took before a time, and not again since.
func (t *Table) FailHanded(before time.Time, err error) {
	t.sweep(func(p *Pending) bool {
		at := p.handed.Load()
		return at != 0 && at < before.UnixNano()
	}, func(*Pending) error { return err })
}

// Close ends everything with err, now and from now on: nobody resolves what is
// admitted after the member has stopped.
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

// Len returns how many requests are in flight.
func (t *Table) Len() int { return int(t.count.Load()) }

// IDs hands out request numbers. Two members that hand out the same one take each
// other's entry for their own, so the numbers of a run begin anywhere among all of
// 64 bits, which depends on every bit of the member's id and of the time of the
// start: that two runs ever meet is less likely than 1 in 2^20 for 2^43 requests
// each. Members of etcd count within 48 bits behind 16 of their id.
type IDs struct{ next atomic.Uint64 }

// NewIDs returns a generator for one run of a member.
func NewIDs(member uint64, now time.Time) *IDs {
	g := &IDs{}
	g.next.Store(mix(mix(member) + uint64(now.UnixNano())))
	return g
}

// mix spreads every bit of x over all bits, one to one (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Next returns a new number, never 0.
func (g *IDs) Next() uint64 {
	for {
		if id := g.next.Add(1); id != 0 {
			return id
		}
	}
}
