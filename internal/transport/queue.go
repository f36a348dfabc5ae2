package transport

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// queue is a bounded queue of messages from many producers to one consumer,
// who takes all that waits at once.
type queue struct {
	limit int
	ready chan struct{} // holds a token when there is something to take

	mu     sync.Mutex
	msgs   []*raftpb.Message
	spare  []*raftpb.Message // the slice of the last batch, to be used again
	taken  int               // messages of the batch in the consumer's hands; they count
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

// take returns all waiting messages; the consumer gives the slice back with
// done before it takes again.
func (q *queue) take() []*raftpb.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.msgs
	q.msgs, q.spare = q.spare[:0], nil
	q.taken = len(batch)
	return batch
}

func (q *queue) done(batch []*raftpb.Message) {
	clear(batch) // let go of the entries
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken = 0
	if cap(batch) <= q.limit {
		q.spare = batch[:0]
	}
}

// close refuses further messages and returns what is left behind: how many the
// consumer has taken and not given back, and those that nobody has taken.
func (q *queue) close() (taken int, waiting []*raftpb.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	taken, waiting = q.taken, q.msgs
	q.msgs, q.taken = nil, 0
	return taken, waiting
}
