package server

import (
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"
)

// maxInboxMessages bounds the messages of peers that wait for the core. More are
// dropped: raft sends again what matters.
const maxInboxMessages = 8192

// inbox collects what happens to the member until somebody drives the core.
// Proposals are bounded by the proposal table, acknowledgements by the work that
// was handed out.
type inbox struct {
	mu   sync.Mutex
	in   Input
	some atomic.Bool // in holds something
}

func (b *inbox) add(f func(*Input)) {
	b.mu.Lock()
	f(&b.in)
	b.some.Store(true)
	b.mu.Unlock()
}

func (b *inbox) pending() bool { return b.some.Load() }

func (b *inbox) take() Input {
	b.mu.Lock()
	in := b.in
	b.in = Input{}
	b.some.Store(false)
	b.mu.Unlock()
	return in
}

// receive queues a message of a peer and reports whether there was room.
func (b *inbox) receive(m *raftpb.Message) (ok bool) {
	b.add(func(in *Input) {
		if ok = len(in.Recv) < maxInboxMessages; ok {
			in.Recv = append(in.Recv, m)
		}
	})
	return ok
}

// queue hands work from one goroutine to another, all that waits at a time. What
// is in it is bounded by the producer's own limits.
type queue[T any] struct {
	mu    sync.Mutex
	items []T
	wake  chan struct{} // capacity 1
}

func newQueue[T any]() *queue[T] { return &queue[T]{wake: make(chan struct{}, 1)} }

func (q *queue[T]) push(items ...T) {
	if len(items) == 0 {
		return
	}
	q.mu.Lock()
	q.items = append(q.items, items...)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for work and returns all of it, or nil once stop is closed and
// nothing is left.
func (q *queue[T]) take(stop <-chan struct{}) []T {
	for {
		q.mu.Lock()
		items := q.items
		q.items = nil
		q.mu.Unlock()
		if len(items) > 0 {
			return items
		}
		select {
		case <-q.wake:
		case <-stop:
			q.mu.Lock()
			items := q.items
			q.items = nil
			q.mu.Unlock()
			return items
		}
	}
}
