package v2store

import (
	"quorate/internal/engine"
)

// Written tells whether a client has ever changed something. Until then the tree is its
// index alone; requests that are refused leave no trace. So a dump of another member, which
// shows only what has happened, tells it as well.
func (s *Store) Written() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.written
}

// Rebase gives a tree that nobody has written to another index, as if so many steps
// of the membership had led to it. Nothing of the tree is recorded then, and what
// was is deleted in b, unless that is nil: the first write or Step records all.
func (s *Store) Rebase(b engine.Batch, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.written {
		return
	}
	if b != nil {
		lower, upper := engine.V2.Bounds()
		b.DeleteRange(lower, upper)
	}
	s.index, s.history, s.loose = index, history{}, true
	for i := max(index, historyEvents) - historyEvents + 1; i <= index; i++ {
		s.history.add(nil, i)
	}
}

// begin is called before the event of a change by a client is recorded. The first time it records the steps up to there,
// which after a Rebase are in memory alone.
func (s *Store) begin(b engine.Batch) {
	if s.written {
		return
	}
	s.written = true
	s.record(b)
}

// record writes down the steps which after a Rebase are in memory alone.
func (s *Store) record(b engine.Batch) {
	s.loose = false
	for i := range s.history.events {
		b.Set(eventKey(s.history.start+uint64(i)), appendEvent(nil, nil, 0))
	}
}
