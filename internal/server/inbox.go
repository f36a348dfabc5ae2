package server

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/proposal"
)

// maxInboxMessages bounds the messages of peers that wait for the loop. More are
// dropped: raft sends again what matters.
const maxInboxMessages = 8192

// inbox collects what happens to the member until the loop takes all of it.
// Proposals are bounded by the proposal table, acknowledgements by the work that
// was handed out.
type inbox struct {
	mu   sync.Mutex
	in   Input
	wake chan struct{} // capacity 1: the loop has something to take
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (b *inbox) add(f func(*Input)) {
	b.mu.Lock()
	f(&b.in)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) take() Input {
	b.mu.Lock()
	in := b.in
	b.in = Input{}
	b.mu.Unlock()
	return in
}

func (b *inbox) propose(p *proposal.Pending) {
	b.add(func(in *Input) { in.Propose = append(in.Propose, p) })
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
