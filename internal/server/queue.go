package server

import "sync"

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
