package clock

import (
	"sync"
	"time"
)

// Ticker sends the time on C repeatedly, or once; a slow receiver gets one tick, not
// all that it missed.
type Ticker struct {
	C    <-chan time.Time
	stop func()
}

// Stop stops the ticks. It does not close C.
func (t *Ticker) Stop() { t.stop() }

// NewTicker returns a ticker on clock c with interval d, which must be positive.
func NewTicker(c Clock, d time.Duration) *Ticker {
	if _, real := c.(Real); real {
		t := time.NewTicker(d)
		return &Ticker{C: t.C, stop: t.Stop}
	}
	return newTicker(c, d, true)
}

// NewTimer returns a ticker that ticks once, after d.
func NewTimer(c Clock, d time.Duration) *Ticker {
	if _, real := c.(Real); real {
		t := time.NewTimer(d)
		return &Ticker{C: t.C, stop: func() { t.Stop() }}
	}
	return newTicker(c, d, false)
}

func newTicker(c Clock, d time.Duration, again bool) *Ticker {
	var (
		mu      sync.Mutex
		stopped bool
		cancel  func() bool
		tick    func()
	)
	ch := make(chan time.Time, 1)
	tick = func() {
		select {
		case ch <- c.Now():
		default:
		}
		mu.Lock()
		defer mu.Unlock()
		if again && !stopped {
			cancel = c.AfterFunc(d, tick)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	cancel = c.AfterFunc(d, tick)
	return &Ticker{C: ch, stop: func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		cancel()
	}}
}
