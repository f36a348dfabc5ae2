package clock

import (
	"sync"
	"time"
)

// System is the clock of the machine, for code that is given no other. The functions
// below are its own.
var System Clock = Real{}

// Now returns the current time.
func Now() time.Time { return System.Now() }

// Since returns the time that has passed since t.
func Since(t time.Time) time.Duration { return System.Now().Sub(t) }

// Until returns the time that is left until t.
func Until(t time.Time) time.Duration { return t.Sub(System.Now()) }

// After returns a channel that gets the time once d has passed.
func After(d time.Duration) <-chan time.Time { return NewTimer(System, d).C }

// AfterFunc runs f on a goroutine of its own once d has passed.
func AfterFunc(d time.Duration, f func()) *Alarm {
	return &Alarm{f: f, stop: System.AfterFunc(d, f)}
}

// Alarm is a function that will run. Safe for concurrent use.
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

// Reset puts the call off until d from now, or asks for another one.
func (a *Alarm) Reset(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stop()
	a.stop = System.AfterFunc(d, a.f)
}

// Pause waits for d.
func Pause(d time.Duration) { <-After(d) }
