package replica

import "sync"

// queue holds work for one that does it. What is in it is bounded by the limits of those
// who hand it out. push is safe for concurrent use; the rest is of the one that does it.
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

// take returns all that waits.
func (q *queue[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}

// wait waits for work and returns all of it, or nil once stop is closed and nothing is
// left.
func (q *queue[T]) wait(stop <-chan struct{}) []T {
	for {
		if items := q.take(); len(items) > 0 {
			return items
		}
		select {
		case <-q.wake:
		case <-stop:
			return q.take()
		}
	}
}
