package transport

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// queue is a bounded queue of messages from many producers to one consumer,
// which takes all waiting messages at once.
type queue struct {
	limit int
	ready chan struct{} // holds a token when there are messages to take

	mu     sync.Mutex
	msgs   []*raftpb.Message
	spare  []*raftpb.Message // the slice of the last batch, for reuse
	taken  int               // size of the batch that the consumer has taken; counts towards limit
	closed bool
}

type pushResult int

const (
	pushed pushResult = iota
	pushFull
	pushClosed
)

func newQueue(limit int) *queue { return &queue{limit: limit, ready: make(chan struct{}, 1)} }

func (q *queue) push(m *raftpb.Message) pushResult {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return pushClosed
	}
	if len(q.msgs)+q.taken >= q.limit {
		q.mu.Unlock()
		return pushFull
	}
	q.msgs = append(q.msgs, m)
	first := len(q.msgs) == 1
	q.mu.Unlock()
	if first {
		select {
		case q.ready <- struct{}{}:
		default:
		}
	}
	return pushed
}

// take returns all waiting messages; the consumer must return the slice
// with done before it calls take again.
func (q *queue) take() []*raftpb.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.msgs
	q.msgs, q.spare = q.spare[:0], nil
	q.taken = len(batch)
	return batch
}

func (q *queue) done(batch []*raftpb.Message) {
	clear(batch) // release the entries
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken = 0
	if cap(batch) <= q.limit {
		q.spare = batch[:0]
	}
}

// close makes push reject messages. It returns the number of messages that the
// consumer has taken without calling done, and the messages that are still
// waiting.
func (q *queue) close() (taken int, waiting []*raftpb.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	taken, waiting = q.taken, q.msgs
	q.msgs, q.taken = nil, 0
	return taken, waiting
}
