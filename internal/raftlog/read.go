package raftlog

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// InitialState returns the newest hard state, nil if there is none, and the
// membership at the newest mark.
func (l *Log) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	cs := &raftpb.ConfState{}
	if l.mark.ConfState != nil {
		cs = proto.Clone(l.mark.ConfState).(*raftpb.ConfState)
	}
	if l.hs == nil {
		return nil, cs, nil
	}
	return cloneHardState(l.hs), cs, nil
}

// FirstIndex returns the index of the oldest available entry. It may be older
// than the newest mark.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.table.first, nil
}

// LastIndex returns the index of the newest entry.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.table.last(), nil
}

// Term returns the term of entry i, which may also be the one before the oldest
// available. It does not access the disk.
func (l *Log) Term(i uint64) (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case i+1 < l.table.first:
		return 0, raft.ErrCompacted
	case i > l.table.last():
		return 0, raft.ErrUnavailable
	}
	return l.table.term(i), nil
}

// Entries returns the entries [lo, hi) up to maxSize encoded bytes, but at
// least one. Entries that are not cached are read from disk and verified;
// damage is a *CorruptError. The entries are shared and must not be
// modified.
func (l *Log) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	l.mu.RLock()
	t := &l.table
	if lo < t.first {
		l.mu.RUnlock()
		return nil, raft.ErrCompacted
	}
	if hi > t.last()+1 || lo > hi {
		l.mu.RUnlock()
		return nil, raft.ErrUnavailable
	}
	if lo == hi {
		l.mu.RUnlock()
		return nil, nil
	}
	hi = t.limit(lo, hi, maxSize)
	cached := t.last() + 1 - uint64(len(t.cache)) // index of the oldest in memory
	ents := make([]*raftpb.Entry, 0, hi-lo)
	if lo >= cached {
		ents = append(ents, t.cache[lo-cached:hi-cached]...)
		l.mu.RUnlock()
		return ents, nil
	}
	onDisk := min(hi, cached)
	slots := append([]slot(nil), t.slots[lo-t.first:onDisk-t.first]...)
	var rest []*raftpb.Entry
	if hi > cached {
		rest = append(rest, t.cache[:hi-cached]...)
	}
	segs := l.segs
	l.mu.RUnlock()

	ents, err := l.load(ents, lo, slots, segs)
	if err != nil {
		if first, _ := l.FirstIndex(); lo < first {
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
		if size += uint64(t.slots[i-t.first].size); size > maxSize && i > lo {
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
func (l *Log) load(ents []*raftpb.Entry, lo uint64, slots []slot, segs []segment) ([]*raftpb.Entry, error) {
	for len(slots) > 0 {
		n := spanLen(slots)
		var err error
		if ents, err = l.loadSpan(ents, lo, slots[:n], segs); err != nil {
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
func (l *Log) loadSpan(ents []*raftpb.Entry, lo uint64, slots []slot, segs []segment) ([]*raftpb.Entry, error) {
	path := ""
	for _, s := range segs {
		if uint32(s.seq) == slots[0].seq {
			path = l.path(s)
		}
	}
	if path == "" {
		return nil, fmt.Errorf("raftlog: read entry %d: segment %d is gone", lo, slots[0].seq)
	}
	f, err := l.fs.Open(path)
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
		if err == nil && e.index != lo+uint64(i) {
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
	_, r, err := checkRecord(buf[off+frameHeader:][:n], s.before)
	if err != nil {
		return entryFields{}, err
	}
	if r.Type != TypeEntry {
		return entryFields{}, fmt.Errorf("%v record where an entry was written", r.Type)
	}
	e, err := decodeEntry(r.Data)
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
	b.nums[0], b.nums[1] = e.term, e.index
	m.Term, m.Index, m.Data = &b.nums[0], &b.nums[1], e.data
	if e.hasType {
		m.Type = raftpb.EntryType(e.typ).Enum()
	}
	b.ents, b.nums = b.ents[1:], b.nums[2:]
	return m
}
