package mvcc

import (
	"encoding/binary"
	"fmt"
	"math"

	"quorate/internal/engine"
	"quorate/internal/ids"
)

// Revision identifies one change: Main counts the transactions that changed something,
// Sub the changes within one of them from 0, in order of execution.
type Revision struct {
	Main ids.Revision
	Sub  int64
}

// Less reports whether r happened before o.
func (r Revision) Less(o Revision) bool {
	return r.Main < o.Main || r.Main == o.Main && r.Sub < o.Sub
}

// Sizes of an encoded revision: 8 bytes main, '_', 8 bytes sub, both big endian; the
// key of a tombstone ends with a 't'.
const (
	RevisionLen  = 17
	TombstoneLen = 18

	revSeparator  = '_'
	tombstoneMark = 't'
)

// AppendRevision appends the encoded revision to dst, as a tombstone's key if
// tombstone is set.
func AppendRevision(dst []byte, r Revision, tombstone bool) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Main))
	dst = append(dst, revSeparator)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Sub))
	if tombstone {
		dst = append(dst, tombstoneMark)
	}
	return dst
}

// ParseRevision decodes the key of a record.
func ParseRevision(b []byte) (r Revision, tombstone bool, err error) {
	switch {
	case len(b) == TombstoneLen && b[RevisionLen] == tombstoneMark:
		tombstone = true
	case len(b) != RevisionLen:
		return r, false, fmt.Errorf("revision key %x: length %d", b, len(b))
	}
	if b[8] != revSeparator {
		return r, false, fmt.Errorf("revision key %x: separator %#02x", b, b[8])
	}
	main, sub := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[9:])
	if main > math.MaxInt64 || sub > maxSub {
		return r, false, fmt.Errorf("revision key %x: number out of range", b)
	}
	return Revision{ids.Revision(main), int64(sub)}, tombstone, nil
}

// Newest returns the greatest main revision of the records in r, 0 if there is none.
func Newest(r engine.Reader) (ids.Revision, error) {
	it, err := r.NewIter(engine.Key.Bounds())
	if err != nil {
		return 0, err
	}
	defer it.Close()
	if !it.Last() {
		return 0, it.Error()
	}
	rev, _, err := ParseRevision(it.Key()[1:])
	if err != nil {
		return 0, corrupt(it.Key()[1:], err)
	}
	return rev.Main, nil
}

// Bump makes rev the newest revision of a store and schedules a compaction of all
// earlier ones, as a restore with a raised revision does: the record of rev is empty.
func Bump(b engine.Batch, rev ids.Revision) {
	b.Set(recordKey(Revision{Main: rev}), nil)
	b.Set(scheduledKey, recordKey(Revision{Main: rev})[1:])
}
