package replica

import "sync"

// queue holds work for one consumer. Its length is bounded by the limits of the producers.
// push is safe for concurrent use; the other methods belong to the consumer.
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
	q.rouse()
}

// edit changes the queued items without waking the consumer.
func (q *queue[T]) edit(f func([]T) []T) {
	q.mu.Lock()
	q.items = f(q.items)
	q.mu.Unlock()
}

// rouse wakes the consumer.
func (q *queue[T]) rouse() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns all queued items without blocking.
func (q *queue[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}

// wait blocks until there are items and returns all of them, or nil once stop is closed and
// the queue is empty.
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
