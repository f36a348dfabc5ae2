package v2store

import (
	"quorate/internal/engine"
)

// Written reports whether a client has ever changed the tree. Until then the tree is its
// index alone; rejected requests leave no trace. So a dump of another member, which
// contains changes only, shows it as well.
func (s *Store) Written() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.written
}

// Rebase sets the index of a tree that no client has written to, as if that many changes of
// the membership had led to it. Afterwards nothing of the tree is recorded, and existing
// records are deleted in b, unless b is nil: the first write or Step records everything.
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

// begin must be called before the event of a client's change is recorded. The first time,
// it records the steps up to there, which after a Rebase are in memory only.
func (s *Store) begin(b engine.Batch) {
	if s.written {
		return
	}
	s.written = true
	s.record(b)
}

// record records the steps which after a Rebase are in memory only.
func (s *Store) record(b engine.Batch) {
	s.loose = false
	for i := range s.history.events {
		b.Set(eventKey(s.history.start+uint64(i)), appendEvent(nil, nil, 0))
	}
}
