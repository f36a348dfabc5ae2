package mvcc

import (
	"bytes"
	"fmt"

	"quorate/internal/engine"
	"quorate/internal/ids"
)

// many reads many records, in ascending order of revision. Most come from the files of
// the engine, past its cache; the others, such as those that are not in a file yet, from
// an iterator, which is opened when the first of them is read. Both are allowed: a
// record never changes, and is not compacted while a view needs it.
type many struct {
	s           *Store
	first, last Revision
	direct      engine.Finder   // nil if the engine has none
	it          engine.Iterator // nil at first
	at          ids.Revision    // main revision that it is at
	key         [1 + TombstoneLen]byte
}

// sparse is the number of revisions per record above which records are scattered: a block
// of the engine then has few of them.
const sparse = 4

// many returns a reader of n records from first to last.
func (s *Store) many(first, last Revision, n int) *many {
	m := &many{s: s, first: first, last: last}
	m.key[0] = byte(engine.Key)
	if d, ok := s.eng.(engine.Direct); ok {
		m.direct = d.NewFinder(int64(last.Main-first.Main) > sparse*int64(n))
	}
	return m
}

// read returns a record, which is valid until the next call.
func (m *many) read(rev Revision) ([]byte, error) {
	key := AppendRevision(m.key[:1], rev, false)
	if m.direct != nil {
		if v, ok := m.direct.Find(key); ok {
			return v, nil
		}
	}
	if m.it == nil {
		it, err := m.s.eng.NewIter(recordKey(m.first), recordKey(Revision{m.last.Main, m.last.Sub + 1}))
		if err != nil {
			return nil, fmt.Errorf("read records: %w", err)
		}
		m.it = it
	}
	if !seek(m.it, m.at, rev.Main, key) {
		err := m.it.Error()
		if err == nil {
			err = engine.ErrNotFound
		}
		return nil, missing(rev, err)
	}
	m.at = rev.Main
	v, err := m.it.Value()
	if err != nil {
		return nil, missing(rev, err)
	}
	return v, nil
}

func (m *many) close() {
	if m.direct != nil {
		m.direct.Close()
	}
	if m.it != nil {
		m.it.Close()
	}
}

// nearby is the distance in main revisions up to which stepping to the next record is
// cheaper than a seek.
const nearby = 12

// seek moves an iterator, which is at the record of revision from or not positioned,
// forward to exactly key of revision to.
func seek(it engine.Iterator, from, to ids.Revision, key []byte) bool {
	if it.Valid() && to-from <= nearby {
		for i := 0; i < nearby && it.Next(); i++ {
			switch c := bytes.Compare(it.Key(), key); {
			case c == 0:
				return true
			case c > 0:
				return false
			}
		}
	}
	return it.SeekGE(key) && bytes.Equal(it.Key(), key)
}
