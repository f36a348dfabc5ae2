// Package clock is the only access to time for code outside the core.
//
// In: the machine's time, or a test that sets it. Out: the current time, and
// callbacks at a later time. Always true: code that has a Clock uses no other source
// of time, so a simulator or a test controls the current time.
package clock

import (
	"sort"
	"sync"
	"time"
)

// Clock returns the current time and schedules functions. It is safe for
// concurrent use.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f on its own goroutine (Real) or inside Advance (Manual)
	// once d has elapsed. stop reports whether it prevented the call.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// Real is the clock of the machine.
type Real struct{}

// Now returns the machine's time, with its monotonic reading.
func (Real) Now() time.Time { return time.Now() }

// AfterFunc is time.AfterFunc.
func (Real) AfterFunc(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

// Manual is a clock that only moves when Advance is called.
type Manual struct {
	mu     sync.Mutex
	now    time.Time
	seq    int
	timers []*manualTimer // sorted by due time, then by order of creation
}

type manualTimer struct {
	due time.Time
	seq int
	f   func()
}

// NewManual returns a clock set to start.
func NewManual(start time.Time) *Manual { return &Manual{now: start} }

// Now returns the clock's current time.
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// AfterFunc registers f; Advance calls it.
func (m *Manual) AfterFunc(d time.Duration, f func()) func() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := &manualTimer{due: m.now.Add(d), seq: m.seq, f: f}
	m.seq++
	m.timers = append(m.timers, t)
	sort.Slice(m.timers, func(i, j int) bool {
		a, b := m.timers[i], m.timers[j]
		if a.due.Equal(b.due) {
			return a.seq < b.seq
		}
		return a.due.Before(b.due)
	})
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for i, x := range m.timers {
			if x == t {
				m.timers = append(m.timers[:i], m.timers[i+1:]...)
				return true
			}
		}
		return false
	}
}

// Advance moves the clock by d and runs, in order, the functions that are due
// by then.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	end := m.now.Add(d)
	for len(m.timers) > 0 && !m.timers[0].due.After(end) {
		t := m.timers[0]
		m.timers = m.timers[1:]
		m.now = t.due
		m.mu.Unlock()
		t.f()
		m.mu.Lock()
	}
	m.now = end
	m.mu.Unlock()
}
