// Package clock is the only door to time for code that runs beside the core.
//
// In: nothing but the passing of time, or a test that moves it. Out: the time,
// and callbacks at a later time. Always true: code that is given a Clock takes
// time from nowhere else, so a simulator or a test decides what the current time is.
package clock

import (
	"sort"
	"sync"
	"time"
)

// Clock tells the time and runs functions later. Safe for concurrent use.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f on a goroutine of its own (Real) or inside Advance
	// (Manual) once d has passed. stop reports whether it prevented the call.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// Real is the clock of the machine.
type Real struct{}

// Now returns the time of the machine, with its monotonic reading.
func (Real) Now() time.Time { return time.Now() }

// AfterFunc is time.AfterFunc.
func (Real) AfterFunc(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

// Manual is a clock that stands still until it is moved.
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

// NewManual returns a clock that shows start.
func NewManual(start time.Time) *Manual { return &Manual{now: start} }

// Now returns the time to which the clock has been moved.
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

// Advance moves the clock by d and runs, in order, what falls due on the way.
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
