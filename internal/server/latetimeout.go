package server

import (
	"context"
	"sync"
	"time"
)

// lateTimeout is a context with a timeout that begins when it is first waited for. A
// request that needs no wait does not pay for a timer.
type lateTimeout struct {
	context.Context // without the timeout
	timeout         time.Duration

	mu     sync.Mutex
	begun  context.Context // with the timeout; nil until then
	cancel context.CancelFunc
}

func (c *lateTimeout) begin() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun == nil {
		c.begun, c.cancel = context.WithTimeout(c.Context, c.timeout)
	}
	return c.begun
}

func (c *lateTimeout) Done() <-chan struct{} { return c.begin().Done() }

func (c *lateTimeout) Deadline() (time.Time, bool) { return c.begin().Deadline() }

func (c *lateTimeout) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun == nil {
		return c.Context.Err()
	}
	return c.begun.Err()
}

// stop releases the timer.
func (c *lateTimeout) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}
