package h2

import (
	"context"
	"sync"
	"time"

	"quorate/internal/clock"
)

// callContext is the context of one call. It is made for calls that hardly look
// at it: the channel of Done is made when somebody asks for it.
type callContext struct {
	values   context.Context // never done: metadata and peer
	deadline time.Time       // zero: none

	mu    sync.Mutex
	err   error
	done  chan struct{}
	timer *clock.Alarm // of one that has no connection of ours to be called at its deadline
	after map[*func()]struct{}
}

var _ context.Context = (*callContext)(nil)

func (c *callContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }

func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

func (c *callContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *callContext) Value(key any) any { return c.values.Value(key) }

// AfterFunc is what package context looks for in the contexts of others: without
// it, each context derived from this one would cost a goroutine.
func (c *callContext) AfterFunc(f func()) (stop func() bool) {
	key := &f
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return func() bool { return false }
	}
	if c.after == nil {
		c.after = make(map[*func()]struct{})
	}
	c.after[key] = struct{}{}
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, waits := c.after[key]
		delete(c.after, key)
		return waits
	}
}

// deadlineGrace is how long a handler may take to say itself that its deadline
// has passed.
const deadlineGrace = 100 * time.Millisecond

// expireAt lets the context end with DeadlineExceeded at t, and calls f a moment
// later: a handler that looks at its context answers before.
func (c *callContext) expireAt(t time.Time, d time.Duration, f func()) {
	c.deadline = t
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.timer = clock.AfterFunc(d, func() {
			c.cancel(context.DeadlineExceeded)
			clock.AfterFunc(deadlineGrace, f)
		})
	}
}

// cancel ends the context; only the first call counts.
func (c *callContext) cancel(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	if c.done != nil {
		close(c.done)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	after := c.after
	c.after = nil
	c.mu.Unlock()
	for f := range after {
		go (*f)()
	}
}
