package server

import "time"

const (
	fadingFirst = 5 * time.Second
	fadingMax   = 5 * time.Minute
)

// fading decides when to mention a condition that persists: after 5 s, and then at
// intervals that double up to 5 min. It is not safe for concurrent use.
type fading struct {
	next  map[uint64]time.Time
	pause map[uint64]time.Duration
}

// due reports whether the condition of id is to be mentioned now.
func (f *fading) due(id uint64, now time.Time) bool {
	if now.Before(f.next[id]) {
		return false
	}
	if f.next == nil {
		f.next, f.pause = map[uint64]time.Time{}, map[uint64]time.Duration{}
	}
	f.pause[id] = min(max(fadingFirst, 2*f.pause[id]), fadingMax)
	f.next[id] = now.Add(f.pause[id])
	return true
}

// forget must be called when the condition of id is over.
func (f *fading) forget(id uint64) {
	delete(f.next, id)
	delete(f.pause, id)
}
