package clock

import (
	"sync"
	"time"
)

// System is the machine's clock, for code without a Clock of its own. The functions
// below use it.
var System Clock = Real{}

// Now returns the current time.
func Now() time.Time { return System.Now() }

// Since returns the time elapsed since t.
func Since(t time.Time) time.Duration { return System.Now().Sub(t) }

// Until returns the time remaining until t.
func Until(t time.Time) time.Duration { return t.Sub(System.Now()) }

// After returns a channel that receives the time once d has elapsed.
func After(d time.Duration) <-chan time.Time { return NewTimer(System, d).C }

// AfterFunc runs f on its own goroutine once d has elapsed.
func AfterFunc(d time.Duration, f func()) *Alarm {
	return &Alarm{f: f, stop: System.AfterFunc(d, f)}
}

// Alarm is a scheduled function. It is safe for concurrent use.
type Alarm struct {
	f    func()
	mu   sync.Mutex
	stop func() bool
}

// Stop prevents the call, and reports whether it did.
func (a *Alarm) Stop() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stop()
}

// Reset reschedules the call to d from now, or schedules another one.
func (a *Alarm) Reset(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stop()
	a.stop = System.AfterFunc(d, a.f)
}

// Pause waits for d.
func Pause(d time.Duration) { <-After(d) }
