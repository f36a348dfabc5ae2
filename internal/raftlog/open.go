package raftlog

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/ids"
)

// Open reads the log in dir, verifies every byte that a restart depends on and
// prepares the log for writing. A single changed byte is detected wherever it is.
// A torn write at the end of the last file is removed as etcd does it; a copy of
// the original file is left next to it with the suffix .broken. Any other damage
// is a *CorruptError.
func Open(fs vfs.FS, dir string, o Options) (*Log, error) {
	o = o.withDefaults()
	l := newLog(fs, dir, o)
	if !Exists(fs, dir) {
		return nil, fmt.Errorf("raftlog: open %s: %w", dir, ErrNotFound)
	}
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.release())
	}
	l.w.prepareSpare()
	return l, nil
}

func (l *Log) open() error {
	if err := l.dir.acquire(); err != nil {
		return err
	}
	segs, err := listSegments(l.dir.fs, l.dir.path)
	if err != nil {
		return err
	}
	l.segs = consecutive(segs)
	l.w.seg = l.segs[len(l.segs)-1]
	r := recovery{dir: l.dir, w: &l.w, replay: &replay{keep: l.opts.CatchUpEntries, table: table{first: 1}}}
	for i, s := range l.segs {
		r.begin(s)
		if i < len(l.segs)-1 {
			err = r.segment(s)
		} else {
			err = r.tail(s)
		}
		if err != nil {
			return err
		}
	}
	if err := r.finish(); err != nil {
		return &CorruptError{File: l.w.path(), Offset: l.w.off, Err: err}
	}
	l.w.crc, l.w.rawMD = r.crc, r.rawMD
	l.md, l.hs, l.mark, l.table = r.md, r.hs, r.mark, r.replay.table
	l.dir.removeRemainders(segs[:len(segs)-len(l.segs)])
	l.dir.removeSpares()
	return nil
}

// recovery reads the segments of a log into a replay, and prepares the last one for writing.
type recovery struct {
	dir *directory
	w   *writer
	*replay
}

// segment reads a segment that is not the last.
func (r *recovery) segment(s segment) error {
	path := r.dir.segment(s)
	f, err := r.dir.fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return fmt.Errorf("raftlog: open %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("raftlog: stat %s: %w", path, err)
	}
	_, r.crc, err = scanSegment(f, path, st.Size(), false, r.crc, r.record)
	return err
}

// tail reads the last segment, repairs its end and opens it for writing.
func (r *recovery) tail(s segment) error {
	path := r.dir.segment(s)
	f, err := r.dir.fs.OpenReadWrite(path, category)
	if err != nil {
		return fmt.Errorf("raftlog: open %s: %w", path, err)
	}
	r.w.file = f
	if err := lockSegment(f); err != nil {
		return fmt.Errorf("raftlog: lock %s: %w", path, err)
	}
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("raftlog: stat %s: %w", path, err)
	}
	size := st.Size()
	end, crc, err := scanSegment(f, path, size, true, r.crc, r.record)
	if err != nil && !errors.Is(err, errTorn) {
		return err
	}
	r.crc = crc
	dirt, err := lastNonZero(f, end, size)
	if err != nil {
		return fmt.Errorf("raftlog: read %s after offset %d: %w", path, end, err)
	}
	if dirt > end {
		if reason, err := changed(f, path, end, size, crc); err != nil {
			return err
		} else if reason != nil {
			return &CorruptError{File: path, Offset: end, Err: reason}
		}
		// r.finish rejects a log that lacks entries it says are committed. Do not
		// modify the file before that check.
		if err := r.finish(); err != nil {
			return &CorruptError{File: path, Offset: end, Err: err}
		}
		if err := r.repair(f, path, end, dirt); err != nil {
			return err
		}
	}
	r.w.off, r.w.zeroed = end, end
	r.w.cap = max(size, r.w.opts.SegmentBytes)
	if err := reserve(f, size, r.w.cap); err != nil {
		// Start without the reservation: later writes may still fit, and fail if
		// they do not.
		r.dir.lg.Warn("failed to preallocate a log segment", zap.String("path", path), zap.Error(err))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("raftlog: sync %s: %w", path, err)
	}
	return nil
}

// repair removes the bytes [end, dirt) after the last good record.
func (r *recovery) repair(f vfs.File, path string, end, dirt int64) error {
	broken := path + ".broken"
	r.dir.lg.Warn("repairing the end of the raft log", zap.String("path", path), zap.String("copy", broken),
		zap.Int64("offset", end), zap.Int64("bytes", dirt-end))
	if err := copyPrefix(r.dir.fs, broken, f, dirt); err != nil {
		return fmt.Errorf("raftlog: copy %s to %s: %w", path, broken, noSpace(err))
	}
	if err := r.dir.file.Sync(); err != nil {
		return fmt.Errorf("raftlog: sync %s: %w", r.dir.path, err)
	}
	if err := writeZeros(f, end, dirt); err != nil {
		return fmt.Errorf("raftlog: zero %s after offset %d: %w", path, end, noSpace(err))
	}
	return nil
}

// replay rebuilds the state of a log from its records, in order. The checksums
// cover the data but not the type of a record, so replay also checks that the
// sequence of records is consistent.
type replay struct {
	keep uint64 // number of entries to keep before the newest mark

	seg    segment // being read
	inHead bool    // no entry of the segment was read yet
	crc    uint32
	rawMD  []byte
	md     Metadata
	hs     *raftpb.HardState
	marks  []SnapshotMark // not older than the newest valid one
	mark   SnapshotMark   // set by finish
	table  table
	// voided is the table from before a mark replaced all entries, until a state
	// confirms that mark: a crash between the two makes the mark void.
	voided    *table
	unproven  ids.Index // index of that mark
	seenEntry bool
}

var (
	errMetadata = errors.New("metadata of two logs")
	errGap      = errors.New("gap between entries")
	errOrder    = errors.New("record contradicts an earlier one")
)

// begin sets the segment of the records that follow.
func (r *replay) begin(s segment) { r.seg, r.inHead = s, true }

func (r *replay) record(off int64, before uint32, rec Record) error {
	switch rec.Type {
	case TypeMetadata:
		return r.metadata(rec.Data)
	case TypeEntry:
		return r.entry(off, before, rec.Data)
	case TypeState:
		return r.state(rec.Data)
	case TypeSnapshot:
		return r.snapshot(rec.Data)
	}
	return nil
}

func (r *replay) metadata(data []byte) error {
	if r.rawMD != nil {
		if !bytes.Equal(r.rawMD, data) {
			return errMetadata
		}
		return nil
	}
	md, err := decodeMetadata(data)
	r.md, r.rawMD = md, bytes.Clone(data)
	return err
}

func (r *replay) entry(off int64, before uint32, data []byte) error {
	e, err := decodeEntry(data)
	if err != nil {
		return err
	}
	if !r.seenEntry && e.index > r.table.last()+1 {
		// The entries before the oldest file are gone, and with them the term
		// before its first entry. finish checks that a mark covers the gap.
		r.table.reset(e.index-1, 0)
	}
	r.seenEntry, r.inHead = true, false
	if e.index < r.table.first {
		r.revert()
	}
	t := &r.table
	switch {
	case e.index > t.last()+1:
		return fmt.Errorf("%w: %d after %d", errGap, e.index, t.last())
	case e.index < t.first:
		return fmt.Errorf("%w: entry %d, oldest is %d", errOrder, e.index, t.first)
	case e.index <= ids.Index(r.hs.GetCommit()):
		return fmt.Errorf("%w: entry %d, committed up to %d", errOrder, e.index, r.hs.GetCommit())
	case e.term < t.term(e.index-1):
		return fmt.Errorf("%w: entry %d of term %d after term %d", errOrder, e.index, e.term, t.term(e.index-1))
	}
	t.truncate(e.index)
	t.push(slot{term: e.term, off8: uint32(off / 8), seq: uint32(r.seg.seq), before: before, size: uint32(len(data))}, nil)
	return nil
}

func (r *replay) state(data []byte) error {
	hs, err := decodeHardState(data)
	if err != nil {
		return err
	}
	if hs.GetTerm() < r.hs.GetTerm() {
		return fmt.Errorf("%w: state of term %d after term %d", errOrder, hs.GetTerm(), r.hs.GetTerm())
	}
	r.hs = hs
	if r.voided != nil && ids.Index(hs.GetCommit()) >= r.unproven {
		r.voided = nil
	}
	return nil
}

// revert undoes the effect of an unproven mark.
func (r *replay) revert() {
	if r.voided != nil {
		r.table, r.voided = *r.voided, nil
	}
}

// snapshot processes a mark. A mark that matches the entries leaves them as they
// are. One that does not comes from a received snapshot that replaced them all.
// One older than all entries has no effect on them, unless a segment was begun
// for it: the older segments are then left over from a removal, and some may be
// gone. If Alone is set, the log begins after the mark.
func (r *replay) snapshot(data []byte) error {
	m, err := decodeMark(data)
	if err != nil {
		return err
	}
	t := &r.table
	begun := r.inHead && r.seg.index == m.Index
	if begun || m.Index > t.last() || m.Index >= t.first && t.term(m.Index) != m.Term {
		if m.Index > ids.Index(r.hs.GetCommit()) {
			if r.voided == nil {
				old := *t
				r.voided, *t = &old, table{}
			}
			r.unproven = m.Index
		}
		t.reset(m.Index, m.Term)
	}
	if m.Index > 0 && m.Index <= ids.Index(r.hs.GetCommit()) && (m.Alone || r.restored(m)) {
		t.compact(m.Index)
	}
	r.marks = append(r.marks, m)
	r.prune()
	return nil
}

// restored reports whether a mark was written by a restore, etcd's or ours: it
// follows the entries that bootstrap a cluster, before any leader was elected, and
// the state at the mark is that of a backup. A log that was not restored has no
// mark of the bootstrap term, or one whose state comes from these entries alone.
func (r *replay) restored(m SnapshotMark) bool {
	const foundersTerm = 1
	return m.Term == foundersTerm && m.Index == r.table.last() && r.table.first == 1
}

// newest returns the position of the newest valid mark, -1 if there is none. A
// mark is valid if its index is committed; one beyond the commit index was
// written before a crash that lost the state record.
func (r *replay) newest() int {
	best := -1
	for i, m := range r.marks {
		if m.Index <= ids.Index(r.hs.GetCommit()) && (best < 0 || m.Index >= r.marks[best].Index) {
			best = i
		}
	}
	return best
}

// prune drops marks and entries that a newer mark makes obsolete, so that
// reading a long log takes bounded memory.
func (r *replay) prune() {
	i := r.newest()
	if i < 0 {
		return
	}
	r.marks = r.marks[i:]
	m := r.marks[0].Index
	if m > ids.Index(r.keep) && m-ids.Index(r.keep) > r.table.first && m-ids.Index(r.keep) <= r.table.last() {
		r.table.compact(m - ids.Index(r.keep))
	}
}

// finish checks the log as a whole and selects the mark to start from. It may
// be called again if no record was read in between.
func (r *replay) finish() error {
	r.revert()
	t := &r.table
	if r.rawMD == nil {
		return fmt.Errorf("%w: no metadata", errEncoding)
	}
	i := r.newest()
	if i < 0 {
		return fmt.Errorf("%w: no snapshot record up to commit %d", errOrder, r.hs.GetCommit())
	}
	r.mark = r.marks[i]
	m := r.mark.Index
	if ids.Index(r.hs.GetCommit()) > t.last() {
		return fmt.Errorf("%w: committed up to %d, last entry is %d", errOrder, r.hs.GetCommit(), t.last())
	}
	if t.baseTerm == 0 && t.first > 1 && m >= t.first {
		t.compact(t.first) // the term before the first entry is unknown
	}
	if m+1 < t.first {
		return fmt.Errorf("%w: snapshot at %d, oldest entry is %d", errGap, m, t.first)
	}
	if m == t.first-1 && t.baseTerm == 0 {
		t.baseTerm = r.mark.Term
	}
	if t.term(m) != r.mark.Term {
		return fmt.Errorf("%w: snapshot at %d of term %d, entry of term %d", errOrder, m, r.mark.Term, t.term(m))
	}
	if m > ids.Index(r.keep) && m-ids.Index(r.keep) >= t.first {
		t.compact(m - ids.Index(r.keep))
	}
	return nil
}
