package server

import "time"

const (
	fadingFirst = 5 * time.Second
	fadingMax   = 5 * time.Minute
)

// fading tells when something that goes on is to be mentioned again: after 5 s,
// and then after twice as long each time, up to 5 min. It is used by one
// goroutine.
type fading struct {
	next  map[uint64]time.Time
	pause map[uint64]time.Duration
}

// due reports whether what is wrong with id is to be mentioned now.
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

// forget is called when nothing is wrong any more.
func (f *fading) forget(id uint64) {
	delete(f.next, id)
	delete(f.pause, id)
}
