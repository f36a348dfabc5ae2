package raftlog

import (
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// Inspect returns the same contents as Open, and changes nothing.
func TestInspect(t *testing.T) {
	fs := vfs.NewMem()
	if _, err := Inspect(fs, "wal", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("without a log: %v", err)
	}
	l, err := Create(fs, "wal", testMD, Options{SegmentBytes: 4096, NoBackground: true})
	must(t, err)
	for i := uint64(1); i <= 60; i++ {
		must(t, l.Append(state(2, 1, i-1), []*raftpb.Entry{entry(i, 2, 200)}, true))
	}
	must(t, l.Append(nil, []*raftpb.Entry{entry(60, 3, 10)}, true)) // in place of the last
	must(t, l.SaveMark(SnapshotMark{Index: 7, Term: 2, ConfState: &raftpb.ConfState{Voters: []uint64{1}}}))
	must(t, l.Close())
	names, err := fs.List("wal")
	must(t, err)
	slices.Sort(names)
	var seen []ids.Index
	c, err := Inspect(fs, "wal", func(index ids.Index, term ids.Term, _ raftpb.EntryType, data []byte) error {
		seen = append(seen, index)
		return nil
	})
	must(t, err)
	if len(seen) != 61 || seen[60] != 60 || c.Metadata != testMD || c.First != 1 || c.Last != 60 || c.Mark.Index != 7 || len(c.Marks) != 2 || c.HardState.GetCommit() != 59 {
		t.Errorf("%d entries; %+v", len(seen), c)
	}
	if term, err := c.Term(60); err != nil || term != 3 {
		t.Errorf("term of entry 60: %d, %v", term, err)
	}
	if _, err := c.Term(61); err == nil {
		t.Error("a term behind the end")
	}
	if now, err := fs.List("wal"); err != nil || !slices.Equal(slices.Sorted(slices.Values(now)), names) {
		t.Errorf("files %q, were %q, %v", now, names, err)
	}
	stop := errors.New("enough")
	if _, err := Inspect(fs, "wal", func(ids.Index, ids.Term, raftpb.EntryType, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped by the callback: %v", err)
	}
}

// FuzzInspect feeds a file to the reader of whole logs, which must not panic.
func FuzzInspect(f *testing.F) {
	fs := vfs.NewMem()
	l, err := Create(fs, "wal", testMD, Options{SegmentBytes: 4096, NoBackground: true})
	must(f, err)
	must(f, l.Append(state(2, 1, 1), []*raftpb.Entry{entry(1, 2, 20), entry(2, 2, 20)}, true))
	must(f, l.SaveMark(SnapshotMark{Index: 1, Term: 2, ConfState: &raftpb.ConfState{Voters: []uint64{1}}}))
	must(f, l.Close())
	const name = "wal/0000000000000000-0000000000000000.wal"
	file, err := fs.Open(name)
	must(f, err)
	b := make([]byte, 4096)
	_, err = file.ReadAt(b, 0)
	must(f, errors.Join(err, file.Close()))
	f.Add(b, uint16(0), byte(0))
	f.Add(b, uint16(100), byte(1))
	f.Fuzz(func(t *testing.T, b []byte, at uint16, x byte) {
		b = slices.Clone(b)
		if int(at) < len(b) {
			b[at] ^= x
		}
		fs := vfs.NewMem()
		must(t, fs.MkdirAll("wal", 0o700))
		file, err := fs.Create(name, category)
		must(t, err)
		_, err = file.Write(b)
		must(t, errors.Join(err, file.Close()))
		_, _ = Inspect(fs, "wal", func(ids.Index, ids.Term, raftpb.EntryType, []byte) error { return nil })
	})
}
