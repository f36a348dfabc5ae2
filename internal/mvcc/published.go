package mvcc

import "quorate/internal/ids"

// PublishedRev returns the revision that a View opened now would have.
func (s *Store) PublishedRev() ids.Revision { return s.published.Load().rev }

// OpenViews returns how many views of the current epoch are open.
func (s *Store) OpenViews() int64 { return s.published.Load().epoch.refs.Load() }

// CompactRev returns the compact revision of the writer, including what is not
// published yet: at the same entry it is the same on every member, however entries are
// grouped into batches.
func (t *Txn) CompactRev() ids.Revision { return t.s.compactRev }
