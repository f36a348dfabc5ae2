package h2

import (
	"context"
	"sync"
	"time"

	"quorate/internal/clock"
)

// callContext is the context of one call. Most calls never select on their context,
// so the channel is created only when Done is called.
type callContext struct {
	values   context.Context // never done; carries metadata and peer
	deadline time.Time       // zero if there is none

	mu    sync.Mutex
	err   error
	done  chan struct{}
	timer *clock.Alarm // only for calls without a conn, which has one timer for all its calls
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

// AfterFunc is the method that package context looks for in foreign contexts: without
// it, each context derived from this one would need a goroutine.
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

// deadlineGrace is the time a handler has to report an exceeded deadline itself before
// its stream is reset.
const deadlineGrace = 100 * time.Millisecond

// expireAt sets the deadline t, which is d from now: the context ends then, and f is
// called deadlineGrace later, so that a handler that watches its context answers first.
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

// cancel ends the context. Only the first call has an effect.
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
