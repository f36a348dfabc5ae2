package raftlog

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// Contents is the part of a log that a restart depends on.
type Contents struct {
	Metadata  Metadata
	HardState *raftpb.HardState // nil if there is none
	Mark      SnapshotMark      // the newest valid mark
	Marks     []SnapshotMark    // all valid marks, in the order of writing
	// First and Last are the indexes of the oldest and newest entry; Last is
	// First-1 if there is none.
	First, Last ids.Index
	table       table
}

// Term returns the term of entry i, which may also be the one before First.
func (c *Contents) Term(i uint64) (uint64, error) {
	switch {
	case ids.Index(i)+1 < c.First:
		return 0, raft.ErrCompacted
	case ids.Index(i) > c.Last:
		return 0, raft.ErrUnavailable
	}
	return uint64(c.table.term(ids.Index(i))), nil
}

// Inspect reads and checks the log in dir as Open does, but without locking or
// changing anything. It calls entry, unless nil, for every entry record in file
// order: a later record of an index replaces the earlier one and all that
// follow that. data is valid during the call only.
//
// Errors: ErrNotFound, *CorruptError, the file system's, or the error of entry.
func Inspect(fs vfs.FS, dir string, entry func(index ids.Index, term ids.Term, t raftpb.EntryType, data []byte) error) (*Contents, error) {
	segs, err := listSegments(fs, dir)
	if err != nil && !isNotExist(err) {
		return nil, err
	}
	if len(segs) == 0 {
		return nil, fmt.Errorf("raftlog: inspect %s: %w", dir, ErrNotFound)
	}
	segs = consecutive(segs)
	r := &replay{keep: DefaultCatchUpEntries, table: table{first: 1}}
	var marks []SnapshotMark
	var stop error
	record := func(off int64, before uint32, rec Record) error {
		if err := r.record(off, before, rec); err != nil {
			return err
		}
		switch {
		case rec.Type == TypeSnapshot:
			m, err := decodeMark(rec.Data)
			marks = append(marks, m)
			return err
		case rec.Type == TypeEntry && entry != nil:
			e, err := decodeEntry(rec.Data)
			if err == nil {
				stop = entry(e.index, e.term, raftpb.EntryType(e.typ), e.data)
				err = stop
			}
			return err
		}
		return nil
	}
	var path string
	var end int64
	for i, s := range segs {
		path = fs.PathJoin(dir, s.name())
		r.begin(s)
		if end, err = inspectSegment(fs, path, i == len(segs)-1, r, record); err != nil {
			if stop != nil {
				return nil, stop
			}
			return nil, err
		}
	}
	if err := r.finish(); err != nil {
		return nil, &CorruptError{File: path, Offset: end, Err: err}
	}
	c := &Contents{Metadata: r.md, HardState: r.hs, Mark: r.mark, First: r.table.first, Last: r.table.last(), table: r.table}
	for _, m := range marks {
		if m.Index <= ids.Index(r.hs.GetCommit()) {
			c.Marks = append(c.Marks, m)
		}
	}
	return c, nil
}

func inspectSegment(fs vfs.FS, path string, last bool, r *replay, record func(off int64, before uint32, rec Record) error) (end int64, err error) {
	f, err := fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return 0, fmt.Errorf("raftlog: open %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("raftlog: stat %s: %w", path, err)
	}
	end, r.crc, err = scanSegment(f, path, st.Size(), last, r.crc, record)
	if last && errors.Is(err, errTorn) {
		return end, nil // a torn write; Open removes it
	}
	return end, err
}
