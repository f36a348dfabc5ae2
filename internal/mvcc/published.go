package mvcc

import "quorate/internal/ids"

// PublishedRev returns the revision that a View opened now would have.
func (s *Store) PublishedRev() ids.Revision { return s.published.Load().rev }

// CompactRev returns the compact revision of the writer, including what is not
// published yet: at the same entry it is the same on every member, however entries are
// grouped into batches.
func (t *Txn) CompactRev() ids.Revision { return t.s.compactRev }

// Retire makes every reader that comes from now on a reader of next, which has replaced s and
// has no older state. The writer must be done with s. Nobody reads from s any more once
// OpenViews is 0.
func (s *Store) Retire(next *Store) {
	s.next.Store(next)
	s.published.Load().epoch.end()
}

// OpenViews returns how many views are open.
func (s *Store) OpenViews() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.published.Load().epoch.refs.Load()
	for _, e := range s.ended {
		n += e.refs.Load()
	}
	return n
}
