package raftlog

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

// reader holds the published state of a log, and reads entries. It is safe for concurrent use; only
// writes, which hold the log's wmu, change it.
type reader struct {
	dir *directory

	mu    sync.RWMutex // guards the fields below
	segs  []segment    // ascending; only the writer appends, only removeSegments shortens
	hs    *raftpb.HardState
	mark  SnapshotMark
	table table
}

func (r *reader) setHardState(hs *raftpb.HardState) {
	r.mu.Lock()
	r.hs = hs
	r.mu.Unlock()
}

// HardState returns the newest hard state, nil if there is none. The caller
// must not modify it.
func (r *reader) HardState() *raftpb.HardState {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.hs
}

// Mark returns the newest mark. The caller must not modify its ConfState.
func (r *reader) Mark() SnapshotMark {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.mark
}

// InitialState returns the newest hard state, nil if there is none, and the
// membership at the newest mark.
func (r *reader) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	cs := &raftpb.ConfState{}
	if r.mark.ConfState != nil {
		cs = proto.Clone(r.mark.ConfState).(*raftpb.ConfState)
	}
	if r.hs == nil {
		return nil, cs, nil
	}
	return cloneHardState(r.hs), cs, nil
}

// FirstIndex returns the index of the oldest available entry. It may be older
// than the newest mark.
func (r *reader) FirstIndex() (uint64, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return uint64(r.table.first), nil
}

// LastIndex returns the index of the newest entry.
func (r *reader) LastIndex() (uint64, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return uint64(r.table.last()), nil
}

// Term returns the term of entry i, which may also be the one before the oldest
// available. It does not access the disk.
func (r *reader) Term(i uint64) (uint64, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	switch {
	case ids.Index(i)+1 < r.table.first:
		return 0, raft.ErrCompacted
	case ids.Index(i) > r.table.last():
		return 0, raft.ErrUnavailable
	}
	return uint64(r.table.term(ids.Index(i))), nil
}

// Entries returns the entries [lo, hi) up to maxSize encoded bytes, but at
// least one. Entries that are not cached are read from disk and verified;
// damage is a *CorruptError. The entries are shared and must not be
// modified.
func (r *reader) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	r.mu.RLock()
	t := &r.table
	if ids.Index(lo) < t.first {
		r.mu.RUnlock()
		return nil, raft.ErrCompacted
	}
	if ids.Index(hi) > t.last()+1 || lo > hi {
		r.mu.RUnlock()
		return nil, raft.ErrUnavailable
	}
	if lo == hi {
		r.mu.RUnlock()
		return nil, nil
	}
	hi = t.limit(lo, hi, maxSize)
	cached := t.last() + 1 - ids.Index(len(t.cache)) // index of the oldest in memory
	ents := make([]*raftpb.Entry, 0, hi-lo)
	if ids.Index(lo) >= cached {
		ents = append(ents, t.cache[ids.Index(lo)-cached:ids.Index(hi)-cached]...)
		r.mu.RUnlock()
		return ents, nil
	}
	onDisk := min(ids.Index(hi), cached)
	slots := append([]slot(nil), t.slots[ids.Index(lo)-t.first:onDisk-t.first]...)
	var rest []*raftpb.Entry
	if ids.Index(hi) > cached {
		rest = append(rest, t.cache[:ids.Index(hi)-cached]...)
	}
	segs := r.segs
	r.mu.RUnlock()

	ents, err := r.load(ents, lo, slots, segs)
	if err != nil {
		if first, _ := r.FirstIndex(); lo < first {
			return nil, raft.ErrCompacted // compacted in the meantime
		}
		return nil, err
	}
	return append(ents, rest...), nil
}

// limit returns the end of the longest run of entries from lo that has at most
// maxSize bytes, and at least one entry.
func (t *table) limit(lo, hi, maxSize uint64) uint64 {
	if maxSize == math.MaxUint64 {
		return hi
	}
	var size uint64
	for i := lo; i < hi; i++ {
		if size += uint64(t.slots[ids.Index(i)-t.first].size); size > maxSize && i > lo {
			return i
		}
	}
	return hi
}

const (
	// maxSpan bounds one read from disk, unless a single entry is larger.
	maxSpan = 1 << 20
	// maxSkip is the largest gap between two wanted entries, in bytes, that is
	// read along with them.
	maxSkip = 64 << 10
)

// load reads entries of consecutive indexes, beginning with lo, and appends
// them to ents.
func (r *reader) load(ents []*raftpb.Entry, lo uint64, slots []slot, segs []segment) ([]*raftpb.Entry, error) {
	for len(slots) > 0 {
		n := spanLen(slots)
		var err error
		if ents, err = r.loadSpan(ents, lo, slots[:n], segs); err != nil {
			return nil, err
		}
		slots, lo = slots[n:], lo+uint64(n)
	}
	return ents, nil
}

// end returns an upper bound of the offset after the slot's frame.
func (s slot) end() int64 { return int64(s.off8)*8 + int64(s.size) + recordOverhead }

// spanLen returns how many of the slots to read at once.
func spanLen(slots []slot) int {
	start := int64(slots[0].off8) * 8
	for i := 1; i < len(slots); i++ {
		s := slots[i]
		if s.seq != slots[0].seq || s.end()-start > maxSpan || int64(s.off8)*8-slots[i-1].end() > maxSkip {
			return i
		}
	}
	return len(slots)
}

// loadSpan reads entries that are close together in one segment. Their data
// share one buffer.
func (r *reader) loadSpan(ents []*raftpb.Entry, lo uint64, slots []slot, segs []segment) ([]*raftpb.Entry, error) {
	path := ""
	for _, s := range segs {
		if uint32(s.seq) == slots[0].seq {
			path = r.dir.segment(s)
		}
	}
	if path == "" {
		return nil, fmt.Errorf("raftlog: read entry %d: segment %d is gone", lo, slots[0].seq)
	}
	f, err := r.dir.fs.Open(path)
	if err != nil {
		return nil, fmt.Errorf("raftlog: read entry %d: %w", lo, err)
	}
	defer f.Close()
	start := int64(slots[0].off8) * 8
	buf := make([]byte, slots[len(slots)-1].end()-start)
	got, err := f.ReadAt(buf, start)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("raftlog: read entry %d in %s at offset %d: %w", lo, path, start, err)
	}
	buf = buf[:got]
	batch := newEntryBatch(len(slots))
	for i, s := range slots {
		off := int64(s.off8) * 8
		e, err := entryAt(buf, off-start, s)
		if err == nil && e.index != ids.Index(lo)+ids.Index(i) {
			err = fmt.Errorf("entry %d where %d was written", e.index, lo+uint64(i))
		}
		if err != nil {
			return nil, &CorruptError{File: path, Offset: off, Err: err}
		}
		ents = append(ents, batch.add(e))
	}
	return ents, nil
}

// entryAt decodes and checks the entry whose frame begins at buf[off].
func entryAt(buf []byte, off int64, s slot) (entryFields, error) {
	if off+frameHeader > int64(len(buf)) {
		return entryFields{}, io.ErrUnexpectedEOF
	}
	n, pad, ok := splitLength(binary.LittleEndian.Uint64(buf[off:]))
	if !ok || n+pad > int64(len(buf))-off-frameHeader {
		return entryFields{}, errLength
	}
	_, rec, err := checkRecord(buf[off+frameHeader:][:n], s.before)
	if err != nil {
		return entryFields{}, err
	}
	if rec.Type != TypeEntry {
		return entryFields{}, fmt.Errorf("%v record where an entry was written", rec.Type)
	}
	e, err := decodeEntry(rec.Data)
	if err == nil && e.term != s.term {
		err = fmt.Errorf("entry of term %d where term %d was written", e.term, s.term)
	}
	return e, err
}

// entryBatch allocates messages for many entries with few allocations.
type entryBatch struct {
	ents []raftpb.Entry
	nums []uint64
}

func newEntryBatch(n int) *entryBatch {
	return &entryBatch{ents: make([]raftpb.Entry, n), nums: make([]uint64, 2*n)}
}

// add returns the next message; its data is e's.
func (b *entryBatch) add(e entryFields) *raftpb.Entry {
	m := &b.ents[0]
	b.nums[0], b.nums[1] = uint64(e.term), uint64(e.index)
	m.Term, m.Index, m.Data = &b.nums[0], &b.nums[1], e.data
	if e.hasType {
		m.Type = raftpb.EntryType(e.typ).Enum()
	}
	b.ents, b.nums = b.ents[1:], b.nums[2:]
	return m
}
