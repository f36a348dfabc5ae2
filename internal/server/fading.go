package server

import (
	"time"

	"quorate/internal/ids"
)

const (
	fadingFirst = 5 * time.Second
	fadingMax   = 5 * time.Minute
)

// fading decides when to mention a condition that persists: after 5 s, and then at
// intervals that double up to 5 min. It is not safe for concurrent use.
type fading struct {
	next  map[ids.Member]time.Time
	pause map[ids.Member]time.Duration
}

// due reports whether the condition of id is to be mentioned now.
func (f *fading) due(id ids.Member, now time.Time) bool {
	if now.Before(f.next[id]) {
		return false
	}
	if f.next == nil {
		f.next, f.pause = map[ids.Member]time.Time{}, map[ids.Member]time.Duration{}
	}
	f.pause[id] = min(max(fadingFirst, 2*f.pause[id]), fadingMax)
	f.next[id] = now.Add(f.pause[id])
	return true
}

// forget must be called when the condition of id is over.
func (f *fading) forget(id ids.Member) {
	delete(f.next, id)
	delete(f.pause, id)
}
