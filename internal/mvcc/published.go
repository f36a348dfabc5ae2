package mvcc

// PublishedRev returns the revision that a View taken now would have.
func (s *Store) PublishedRev() int64 { return s.published.Load().rev }

// OpenViews returns how many views of the current epoch are open.
func (s *Store) OpenViews() int64 { return s.published.Load().epoch.refs.Load() }

// CompactRev returns the compact revision of the writer, with what is not
// published yet: the same on every member at the same entry, however entries
// are grouped into batches.
func (t *Txn) CompactRev() int64 { return t.s.compactRev }
