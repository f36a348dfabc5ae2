package raftlog

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// The log implements raft.Storage except Snapshot, which its owner adds.
var _ interface {
	InitialState() (*raftpb.HardState, *raftpb.ConfState, error)
	Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error)
	Term(i uint64) (uint64, error)
	LastIndex() (uint64, error)
	FirstIndex() (uint64, error)
} = (*Log)(nil)

var testMD = Metadata{NodeID: 0x8e9e05c52164694d, ClusterID: 0xcdf818194e3a8c32}

// small selects segments that a few entries fill, and no goroutines.
var small = Options{SegmentBytes: 4096, CacheBytes: 600, NoBackground: true}

func create(t *testing.T, fs vfs.FS, o Options) *Log {
	t.Helper()
	l, err := Create(fs, "wal", testMD, o)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func open(t *testing.T, fs vfs.FS, o Options) *Log {
	t.Helper()
	l, err := Open(fs, "wal", o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func reopen(t *testing.T, l *Log) *Log {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	return open(t, l.dir.fs, l.opts)
}

// entry returns an entry whose data encodes index, term and a size.
func entry(index, term uint64, size int) *raftpb.Entry {
	return &raftpb.Entry{Index: new(index), Term: new(term), Data: payload(index, term, size)}
}

func payload(index, term uint64, size int) []byte {
	s := fmt.Sprintf("%d.%d.", index, term)
	return []byte(s + strings.Repeat("x", max(size-len(s), 0)))
}

// run returns entries [lo, hi] of one term.
func run(lo, hi, term uint64, size int) []*raftpb.Entry {
	var ents []*raftpb.Entry
	for i := lo; i <= hi; i++ {
		ents = append(ents, entry(i, term, size))
	}
	return ents
}

func state(term, vote, commit uint64) *raftpb.HardState {
	return hardState(ids.Term(term), vote, commit)
}

func conf(members ...uint64) *raftpb.ConfState { return &raftpb.ConfState{Voters: members} }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// show renders the contents of a log: "first..last", the runs of terms, state,
// mark.
func show(l *Log) string {
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	var b strings.Builder
	fmt.Fprintf(&b, "%d..%d", first, last)
	prev := uint64(math.MaxUint64)
	for i := first - 1; i <= last; i++ {
		term, err := l.Term(i)
		if err != nil {
			return err.Error()
		}
		if term != prev {
			fmt.Fprintf(&b, " t%d@%d", term, i)
			prev = term
		}
	}
	hs, m := l.HardState(), l.Mark()
	fmt.Fprintf(&b, " hs=%d/%d/%d mark=%d/%d%v", hs.GetTerm(), hs.GetVote(), hs.GetCommit(), m.Index, m.Term, m.ConfState.GetVoters())
	return b.String()
}

// newest renders what a restart must preserve: last index, state and mark.
// The oldest entries may reappear: only whole files are removed.
func newest(l *Log) string {
	last, _ := l.LastIndex()
	s := show(l)
	return fmt.Sprint("last=", last, " ", s[strings.Index(s, "hs="):])
}

// verify reads back all entries, together and one by one, and compares them
// with entry() of that index and term.
func verify(t *testing.T, l *Log, size int) {
	t.Helper()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	all, err := l.Entries(first, last+1, math.MaxUint64)
	must(t, err)
	if got, want := len(all), int(last-first+1); got != want {
		t.Fatalf("Entries(%d, %d) returned %d entries, want %d", first, last+1, got, want)
	}
	for i, e := range all {
		index := first + uint64(i)
		term, err := l.Term(index)
		must(t, err)
		one, err := l.Entries(index, index+1, 0)
		must(t, err)
		for _, e := range []*raftpb.Entry{e, one[0]} {
			if e.GetIndex() != index || e.GetTerm() != term || string(e.Data) != string(payload(index, term, size)) {
				t.Fatalf("entry %d of term %d: got %d of term %d with %q", index, term, e.GetIndex(), e.GetTerm(), e.Data)
			}
		}
	}
}

// TestLog runs operations and shows the log after each, and once more after a
// restart at the end.
func TestLog(t *testing.T) {
	type step struct {
		do   func(l *Log) error
		want string // of show, or the start of the error
	}
	app := func(hs *raftpb.HardState, ents ...*raftpb.Entry) func(*Log) error {
		return func(l *Log) error { return l.Append(hs, ents, true) }
	}
	lazy := func(hs *raftpb.HardState) func(*Log) error {
		return func(l *Log) error { return l.Append(hs, nil, false) }
	}
	mark := func(index, term uint64, members ...uint64) func(*Log) error {
		return func(l *Log) error {
			return l.SaveMark(SnapshotMark{Index: ids.Index(index), Term: ids.Term(term), ConfState: conf(members...)})
		}
	}
	alone := func(index, term uint64, members ...uint64) func(*Log) error {
		return func(l *Log) error {
			return l.SaveMark(SnapshotMark{Index: ids.Index(index), Term: ids.Term(term), ConfState: conf(members...), Alone: true})
		}
	}
	reset := func(index, term uint64, members ...uint64) func(*Log) error {
		return func(l *Log) error {
			return l.Reset(SnapshotMark{Index: ids.Index(index), Term: ids.Term(term), ConfState: conf(members...)})
		}
	}
	compact := func(i uint64) func(*Log) error { return func(l *Log) error { return l.Compact(ids.Index(i)) } }

	for _, tc := range []struct {
		name    string
		steps   []step
		restart string
	}{
		{"empty", nil, "1..0 t0@0 hs=0/0/0 mark=0/0[]"},
		{"append", []step{
			{app(state(1, 7, 0), entry(1, 1, 10)), "1..1 t0@0 t1@1 hs=1/7/0 mark=0/0[]"},
			{app(nil, run(2, 4, 2, 10)...), "1..4 t0@0 t1@1 t2@2 hs=1/7/0 mark=0/0[]"},
			{app(state(2, 0, 4)), "1..4 t0@0 t1@1 t2@2 hs=2/0/4 mark=0/0[]"},
		}, "1..4 t0@0 t1@1 t2@2 hs=2/0/4 mark=0/0[]"},
		{"overwrite", []step{
			{app(state(1, 7, 2), run(1, 9, 1, 10)...), "1..9 t0@0 t1@1 hs=1/7/2 mark=0/0[]"},
			{app(state(3, 0, 2), entry(5, 3, 10)), "1..5 t0@0 t1@1 t3@5 hs=3/0/2 mark=0/0[]"},
			{app(nil, run(3, 4, 4, 10)...), "1..4 t0@0 t1@1 t4@3 hs=3/0/2 mark=0/0[]"},
		}, "1..4 t0@0 t1@1 t4@3 hs=3/0/2 mark=0/0[]"},
		{"commit is written with the next record or at the end", []step{
			{app(state(1, 7, 0), run(1, 9, 1, 10)...), "1..9 t0@0 t1@1 hs=1/7/0 mark=0/0[]"},
			{lazy(state(1, 7, 3)), "1..9 t0@0 t1@1 hs=1/7/3 mark=0/0[]"},
			{app(nil, entry(10, 1, 10)), "1..10 t0@0 t1@1 hs=1/7/3 mark=0/0[]"},
			{lazy(state(1, 7, 8)), "1..10 t0@0 t1@1 hs=1/7/8 mark=0/0[]"},
		}, "1..10 t0@0 t1@1 hs=1/7/8 mark=0/0[]"},
		{"mark", []step{
			{app(state(1, 7, 9), run(1, 9, 1, 10)...), "1..9 t0@0 t1@1 hs=1/7/9 mark=0/0[]"},
			{mark(4, 1, 7), "1..9 t0@0 t1@1 hs=1/7/9 mark=4/1[7]"},
			{compact(2), "3..9 t1@2 hs=1/7/9 mark=4/1[7]"},
			{compact(5), "raftlog: compact through 5: newest mark is 4"},
			{mark(8, 1, 7, 8), "3..9 t1@2 hs=1/7/9 mark=8/1[7 8]"},
			{mark(7, 1, 7), "raftlog: mark 7: not in [8, 9]"},
			{mark(9, 2, 7), "raftlog: mark 9 of term 2: the entry has term 1"},
		}, "1..9 t0@0 t1@1 hs=1/7/9 mark=8/1[7 8]"},
		{"mark raises commit", []step{
			{app(state(1, 7, 2), run(1, 9, 1, 10)...), "1..9 t0@0 t1@1 hs=1/7/2 mark=0/0[]"},
			{mark(5, 1, 7), "1..9 t0@0 t1@1 hs=1/7/5 mark=5/1[7]"},
			{app(state(2, 0, 3)), "1..9 t0@0 t1@1 hs=2/0/5 mark=5/1[7]"},
		}, "1..9 t0@0 t1@1 hs=2/0/5 mark=5/1[7]"},
		{"mark that stands alone", []step{
			{app(state(2, 7, 3), run(1, 9, 2, 10)...), "1..9 t0@0 t2@1 hs=2/7/3 mark=0/0[]"},
			{alone(5, 2, 7), "6..9 t2@5 hs=2/7/5 mark=5/2[7]"},
			{mark(7, 2, 7), "6..9 t2@5 hs=2/7/7 mark=7/2[7]"},
		}, "6..9 t2@5 hs=2/7/7 mark=7/2[7]"},
		{"reset of an empty log", []step{
			{reset(100, 3, 7, 8), "101..100 t3@100 hs=3/0/100 mark=100/3[7 8]"},
			{app(state(3, 7, 101), entry(101, 3, 10)), "101..101 t3@100 hs=3/7/101 mark=100/3[7 8]"},
		}, "101..101 t3@100 hs=3/7/101 mark=100/3[7 8]"},
		{"reset forward", []step{
			{app(state(2, 7, 4), run(1, 9, 1, 10)...), "1..9 t0@0 t1@1 hs=2/7/4 mark=0/0[]"},
			{reset(50, 2, 7), "51..50 t2@50 hs=2/7/50 mark=50/2[7]"},
			{app(nil, run(51, 52, 2, 10)...), "51..52 t2@50 hs=2/7/50 mark=50/2[7]"},
		}, "51..52 t2@50 hs=2/7/50 mark=50/2[7]"},
		{"reset below entries that were never committed", []step{
			{app(state(1, 7, 4), run(1, 90, 1, 10)...), "1..90 t0@0 t1@1 hs=1/7/4 mark=0/0[]"},
			{reset(50, 2, 7), "51..50 t2@50 hs=2/0/50 mark=50/2[7]"},
			{reset(49, 2, 7), "raftlog: reset to index 49, term 2: committed up to 50"},
		}, "51..50 t2@50 hs=2/0/50 mark=50/2[7]"},
		{"refused", []step{
			{app(state(2, 7, 3), run(1, 5, 2, 10)...), "1..5 t0@0 t2@1 hs=2/7/3 mark=0/0[]"},
			{app(nil, entry(7, 2, 10)), "raftlog: append entry 7 after 5: gap"},
			{app(nil, entry(3, 2, 10)), "raftlog: append entry 3: committed up to 3"},
			{app(nil, entry(6, 1, 10)), "raftlog: append entry 6 of term 1 after term 2"},
			{app(nil, entry(6, 2, 10), entry(8, 2, 10)), "raftlog: append entry 8 after 6"},
			{app(state(1, 0, 3)), "raftlog: append hard state of term 1 after term 2"},
			{app(state(2, 7, 6)), "raftlog: append hard state: commit 6 is beyond the last entry 5"},
			{mark(6, 2, 7), "raftlog: mark 6: not in [0, 5]"},
		}, "1..5 t0@0 t2@1 hs=2/7/3 mark=0/0[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := create(t, vfs.NewMem(), small)
			for i, s := range tc.steps {
				got := ""
				if err := s.do(l); err != nil {
					got = err.Error()
				} else {
					got = show(l)
					verify(t, l, 10)
				}
				if !strings.HasPrefix(got, s.want) || got == "" {
					t.Fatalf("step %d: got  %s\nwant %s", i, got, s.want)
				}
			}
			for range 2 {
				l = reopen(t, l)
				if got := show(l); got != tc.restart {
					t.Fatalf("restart: got  %s\nwant %s", got, tc.restart)
				}
				verify(t, l, 10)
			}
			if got := l.Metadata(); got != testMD {
				t.Errorf("Metadata() = %v, want %v", got, testMD)
			}
		})
	}
}

// TestSegments fills many small segments, from memory and from disk, with marks
// and compactions between, and restarts often.
func TestSegments(t *testing.T) {
	fs := vfs.NewMem()
	o := small
	o.CatchUpEntries = 10
	l := create(t, fs, o)
	next := uint64(1)
	for round := range uint64(40) {
		term := 1 + round/3
		n := 1 + round*7%23
		if next > 5 && round%4 == 3 {
			next -= 3 // a new leader replaces the last entries
		}
		must(t, l.Append(state(term, 7, max(next, 4)-4), run(next, next+n-1, term, 200), true))
		next += n
		verify(t, l, 200)
		if round%5 == 4 {
			at := next - 8
			mt, err := l.Term(at)
			must(t, err)
			must(t, l.SaveMark(SnapshotMark{Index: ids.Index(at), Term: ids.Term(mt), ConfState: conf(7)}))
			must(t, l.Compact(ids.Index(at)-5))
			if first, _ := l.FirstIndex(); first != at-4 {
				t.Fatalf("FirstIndex() = %d after Compact(%d)", first, at-5)
			}
			if _, err := l.Entries(at-5, at, 1000); !errors.Is(err, raft.ErrCompacted) {
				t.Fatalf("Entries below the first: %v, want ErrCompacted", err)
			}
			if _, err := l.Term(at - 6); !errors.Is(err, raft.ErrCompacted) {
				t.Fatalf("Term below the first: %v, want ErrCompacted", err)
			}
		}
		if round%7 == 6 {
			m := l.Mark()
			before := newest(l)
			l = reopen(t, l)
			first, _ := l.FirstIndex()
			if m.Index > 10 && ids.Index(first) != m.Index-9 {
				t.Fatalf("FirstIndex() = %d after restart from mark %d, want 10 entries before it", first, m.Index)
			}
			if got := newest(l); got != before {
				t.Fatalf("after restart: %s, want %s", got, before)
			}
			verify(t, l, 200)
		}
	}
	segs, err := listSegments(fs, "wal")
	must(t, err)
	if len(segs) > 4 || segs[0].seq == 0 {
		t.Errorf("%d segments are left, from %s on: Compact does not remove them", len(segs), segs[0].name())
	}
	for _, s := range segs {
		st, err := fs.Stat("wal/" + s.name())
		must(t, err)
		if st.Size() > 5500 { // including the space left for a mark
			t.Errorf("%s has %d bytes, want at most a segment", s.name(), st.Size())
		}
	}
}

// TestLargeAppend writes groups far larger than a segment and than the write
// buffer.
func TestLargeAppend(t *testing.T) {
	l := create(t, vfs.NewMem(), small)
	must(t, l.Append(nil, run(1, 3, 1, 100), true))
	must(t, l.Append(state(1, 7, 3), run(4, 40, 1, 300_000), true))
	must(t, l.Append(nil, run(41, 43, 1, 100), true))
	l = reopen(t, l)
	if got, want := show(l), "1..43 t0@0 t1@1 hs=1/7/3 mark=0/0[]"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	ents, err := l.Entries(1, 44, math.MaxUint64)
	must(t, err)
	for i, e := range ents {
		size := 100
		if i >= 3 && i < 40 {
			size = 300_000
		}
		if string(e.Data) != string(payload(uint64(i+1), 1, size)) {
			t.Errorf("entry %d has other data", i+1)
		}
	}
	segs, err := listSegments(l.dir.fs, "wal")
	must(t, err)
	if len(segs) != 3 {
		t.Errorf("got %d segments, want 3: before, the large group, behind", len(segs))
	}
}

func TestEntriesLimit(t *testing.T) {
	l := create(t, vfs.NewMem(), small)
	must(t, l.Append(nil, run(1, 30, 1, 94), true)) // 100 bytes encoded
	for _, tc := range []struct {
		lo, hi, max uint64
		want        int
		err         error
	}{
		{1, 31, math.MaxUint64, 30, nil},
		{1, 31, 0, 1, nil},
		{1, 31, 99, 1, nil},
		{1, 31, 300, 3, nil},
		{1, 31, 399, 3, nil},
		{20, 31, 1000, 10, nil}, // some in memory, some not
		{29, 31, 1000, 2, nil},
		{5, 5, 1000, 0, nil},
		{0, 5, 1000, 0, raft.ErrCompacted},
		{1, 32, 1000, 0, raft.ErrUnavailable},
	} {
		ents, err := l.Entries(tc.lo, tc.hi, tc.max)
		if len(ents) != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("Entries(%d, %d, %d) = %d entries, %v; want %d, %v", tc.lo, tc.hi, tc.max, len(ents), err, tc.want, tc.err)
		}
	}
	if n := len(l.table.cache); n != 6 {
		t.Errorf("%d entries of 100 bytes in memory, want 6 within 600 bytes", n)
	}
}

// TestDisk runs on a real directory: locks, modes, sizes, the spare segment.
func TestDisk(t *testing.T) {
	dir := t.TempDir() + "/member/wal"
	fs := vfs.Default
	l, err := Create(fs, dir+"/", testMD, Options{})
	must(t, err)
	defer l.Close()
	if _, err := Create(fs, dir, testMD, Options{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Create: %v, want ErrExist", err)
	}
	if _, err := Open(fs, dir, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("Open of a log that is open: %v, want ErrInUse", err)
	}
	must(t, l.Append(state(1, 7, 2), run(1, 20, 1, 100), true))
	st, err := os.Stat(dir + "/0000000000000000-0000000000000000.wal")
	must(t, err)
	if st.Size() != DefaultSegmentBytes || st.Mode().Perm() != 0o600 {
		t.Errorf("segment has %d bytes and mode %v, want %d and -rw-------", st.Size(), st.Mode(), DefaultSegmentBytes)
	}
	dst, err := os.Stat(dir)
	must(t, err)
	if dst.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v, want drwx------", dst.Mode())
	}
	must(t, l.Close())
	must(t, l.Close())
	if err := l.Append(nil, run(21, 21, 1, 1), true); !errors.Is(err, ErrClosed) {
		t.Errorf("Append after Close: %v, want ErrClosed", err)
	}
	names, err := fs.List(dir)
	must(t, err)
	if len(names) != 1 {
		t.Errorf("after Close the directory holds %v, want the segment alone", names)
	}
	l, err = Open(fs, dir, Options{SegmentBytes: 8192})
	must(t, err)
	defer l.Close()
	verify(t, l, 100)
	// The reopened segment keeps its size; the ones after it have the new one.
	must(t, l.w.cut(21, nil))
	for i := uint64(21); i < 400; i++ {
		must(t, l.Append(nil, run(i, i, 1, 100), true))
	}
	must(t, l.SaveMark(SnapshotMark{Index: 390, Term: 1, ConfState: conf(7)}))
	must(t, l.Compact(390))
	verify(t, l, 100)
	segs, err := listSegments(fs, dir)
	must(t, err)
	if n := len(segs); n > 2 {
		t.Errorf("%d segments left after Compact", n)
	}
	if _, err := Open(fs, t.TempDir(), Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Open of an empty directory: %v, want ErrNotFound", err)
	}
}
