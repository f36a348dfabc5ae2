package raftlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// hookFS calls before for each operation that changes the disk. The operation
// returns its error; if it is a write, part bytes still reach the file.
type hookFS struct {
	vfs.FS
	before func(op, path string) (part int, err error)
}

func (fs *hookFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if _, err := fs.before("open", name); err != nil {
		return nil, err
	}
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	return &hookFile{f, fs, name}, err
}

func (fs *hookFS) OpenDir(name string) (vfs.File, error) {
	f, err := fs.FS.OpenDir(name)
	return &hookFile{f, fs, name}, err
}

func (fs *hookFS) Rename(from, to string) error {
	if _, err := fs.before("rename", from); err != nil {
		return err
	}
	return fs.FS.Rename(from, to)
}

func (fs *hookFS) Remove(name string) error {
	if _, err := fs.before("remove", name); err != nil {
		return err
	}
	return fs.FS.Remove(name)
}

type hookFile struct {
	vfs.File
	fs   *hookFS
	path string
}

func (f *hookFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.fs.before("write", f.path)
	if errors.Is(err, syscall.ENOSPC) {
		// Bytes that the file already has need no space.
		st, serr := f.File.Stat()
		if serr != nil {
			return 0, serr
		}
		if off+int64(len(p)) <= st.Size() {
			err = nil
		}
	}
	if err != nil {
		n = min(n, len(p))
		if n > 0 {
			if _, err := f.File.WriteAt(p[:n], off); err != nil {
				return 0, err
			}
		}
		return n, err
	}
	return f.File.WriteAt(p, off)
}

func (f *hookFile) Sync() error {
	if _, err := f.fs.before("sync", f.path); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *hookFile) SyncData() error {
	if _, err := f.fs.before("sync", f.path); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *hookFile) Preallocate(off, n int64) error {
	if _, err := f.fs.before("preallocate", f.path); err != nil {
		return err
	}
	return f.File.Preallocate(off, n)
}

// history lists every state of the log, record by record. A crash may leave
// any of them from the durable one on.
type history struct {
	mu      sync.Mutex
	states  []logState
	durable int // states[durable] was acknowledged
}

type logState struct {
	base  uint64   // index before the first of terms
	terms []uint64 // terms[0] is that of base
	hs    [3]uint64
	mark  uint64
}

func (s logState) last() uint64 { return s.base + uint64(len(s.terms)) - 1 }

func (h *history) now() logState { return h.states[len(h.states)-1] }

func (h *history) push(s logState) { h.states = append(h.states, s) }

// expand records the effect of an operation before it is executed.
func (h *history) expand(hs *raftpb.HardState, ents []*raftpb.Entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.now()
	for _, e := range ents {
		s.terms = append(slices.Clone(s.terms[:e.GetIndex()-s.base]), e.GetTerm())
		h.push(s)
	}
	if hs != nil {
		s.hs = [3]uint64{hs.GetTerm(), hs.GetVote(), max(hs.GetCommit(), s.hs[2])}
		h.push(s)
	}
}

func (h *history) ack() {
	h.mu.Lock()
	h.durable = len(h.states) - 1
	h.mu.Unlock()
}

// allows reports whether a crash may have left l, if it happened with the
// history at least at durable and at most at upto.
func (h *history) allows(l *Log, durable, upto int) error {
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	hs := l.HardState()
	gotHS := [3]uint64{hs.GetTerm(), hs.GetVote(), hs.GetCommit()}
	entsOK, hsOK, markOK := false, false, false
	for _, s := range h.states[durable : upto+1] {
		hsOK = hsOK || s.hs == gotHS
		markOK = markOK || ids.Index(s.mark) == l.Mark().Index
		if s.last() != last {
			continue
		}
		same := true
		for i := max(first-1, s.base); i <= last && same; i++ {
			term, err := l.Term(i)
			same = err == nil && term == s.terms[i-s.base]
		}
		entsOK = entsOK || same
	}
	if !entsOK || !hsOK || !markOK {
		return fmt.Errorf("found %s (entries %v, state %v, mark %v)\nacknowledged %v\nnewest %v",
			show(l), entsOK, hsOK, markOK, h.states[durable], h.states[upto])
	}
	return nil
}

// workload runs random operations and records the history.
func workload(t *testing.T, l *Log, h *history, rng *rand.Rand, ops int) {
	t.Helper()
	term := uint64(1)
	for range ops {
		s := h.now()
		switch k := rng.IntN(20); {
		case k < 12: // append
			if rng.IntN(5) == 0 {
				term++
			}
			lo := s.last() + 1
			if rng.IntN(4) == 0 {
				lo = max(s.hs[2]+1, lo-min(lo, uint64(rng.IntN(4))), s.base+1)
			}
			ents := run(lo, lo+uint64(rng.IntN(6)), term, 150)
			var hs *raftpb.HardState
			if rng.IntN(2) == 0 {
				hs = state(term, uint64(rng.IntN(3)), min(s.hs[2]+uint64(rng.IntN(5)), ents[len(ents)-1].GetIndex()))
			}
			h.expand(hs, ents)
			sync := rng.IntN(5) > 0
			must(t, l.Append(hs, ents, sync))
			if sync {
				h.ack()
			}
		case k < 15: // commit advances
			if s.hs[0] == 0 {
				continue
			}
			hs := state(s.hs[0], s.hs[1], min(s.hs[2]+uint64(rng.IntN(5)), s.last()))
			h.expand(hs, nil)
			must(t, l.Append(hs, nil, false))
		case k < 18: // mark and compact
			at := max(s.mark, s.hs[2]-min(s.hs[2], uint64(rng.IntN(8))))
			if at <= s.mark || at < s.base {
				continue
			}
			h.mu.Lock()
			s.mark = at
			h.push(s)
			h.mu.Unlock()
			must(t, l.SaveMark(SnapshotMark{Index: ids.Index(at), Term: ids.Term(s.terms[at-s.base]), ConfState: conf(7)}))
			h.ack()
			must(t, l.Compact(ids.Index(at)-min(ids.Index(at), ids.Index(rng.IntN(4)))))
		default: // receive a snapshot
			if rng.IntN(3) > 0 {
				continue
			}
			term++
			at := s.hs[2] + 1 + uint64(rng.IntN(30))
			n := logState{base: at, terms: []uint64{term}, mark: at, hs: [3]uint64{term, 0, at}}
			h.mu.Lock()
			h.push(n)
			h.mu.Unlock()
			must(t, l.Reset(SnapshotMark{Index: ids.Index(at), Term: ids.Term(term), ConfState: conf(7)}))
			h.ack()
		}
	}
}

func newHistory() *history {
	return &history{states: []logState{{terms: []uint64{0}}}}
}

// TestCrash crashes the machine before each single change of the disk during
// a random workload, and checks that the next start finds everything
// acknowledged, in the order written.
func TestCrash(t *testing.T) {
	type clone struct {
		fs            *vfs.MemFS
		op            string
		durable, upto int
	}
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			mem := vfs.NewCrashableMem()
			h := newHistory()
			var clones []clone
			created := false
			fs := &hookFS{FS: mem}
			fs.before = func(op, path string) (int, error) {
				h.mu.Lock()
				defer h.mu.Unlock()
				cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 30, 80, 100}[rng.IntN(4)], RNG: rng}
				if created {
					clones = append(clones, clone{mem.CrashClone(cfg), op + " " + path, h.durable, len(h.states) - 1})
				}
				return 0, nil
			}
			o := small
			o.CatchUpEntries = 5
			l := create(t, fs, o)
			created = true
			workload(t, l, h, rand.New(rand.NewPCG(seed, 2)), 60)
			if len(clones) < 100 {
				t.Fatalf("only %d crash points", len(clones))
			}
			for i, c := range clones {
				l, err := Open(c.fs, "wal", o)
				if err != nil {
					t.Fatalf("crash %d before %s: %v", i, c.op, err)
				}
				if err := h.allows(l, c.durable, c.upto); err != nil {
					t.Fatalf("crash %d before %s: %v", i, c.op, err)
				}
				verify(t, l, 150)
				// The log must work normally: new writes are found.
				last, _ := l.LastIndex()
				term, _ := l.Term(last)
				must(t, l.Append(state(max(term, l.HardState().GetTerm(), 1), 0, 0), run(last+1, last+30, max(term, 1), 150), true))
				before := newest(l)
				l = reopen(t, l)
				if got := newest(l); got != before {
					t.Fatalf("crash %d before %s, second restart: %s, want %s", i, c.op, got, before)
				}
				verify(t, l, 150)
				must(t, l.Close())
			}
		})
	}
}

// TestCrashInCreate: a log appears atomically, and otherwise can be created
// again.
func TestCrashInCreate(t *testing.T) {
	for _, percent := range []int{0, 50, 100} {
		rng := rand.New(rand.NewPCG(uint64(percent), 1))
		mem := vfs.NewCrashableMem()
		var clones []*vfs.MemFS
		fs := &hookFS{FS: mem}
		fs.before = func(string, string) (int, error) {
			clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
			return 0, nil
		}
		l := create(t, fs, small)
		must(t, l.Append(nil, run(1, 1, 1, 1), true))
		clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{}))
		for i, c := range clones {
			var l *Log
			var err error
			if Exists(c, "wal") {
				l, err = Open(c, "wal", small)
			} else if i == len(clones)-1 {
				t.Fatal("the log is gone after Create returned")
			} else {
				l, err = Create(c, "wal", testMD, small)
			}
			if err != nil {
				t.Fatalf("crash %d: %v", i, err)
			}
			if l.Metadata() != testMD {
				t.Fatalf("crash %d: metadata %v", i, l.Metadata())
			}
			l.Close()
		}
	}
}

// TestDiskFull fails each change of the disk in turn for lack of space, with
// and without a partial write. The call returns ErrNoSpace and has no effect;
// it succeeds when there is room again.
func TestDiskFull(t *testing.T) {
	for _, part := range []int{0, 1, 700, 5000} {
		for nth := 0; ; nth++ {
			full, count := false, 0
			fs := &hookFS{FS: vfs.NewMem()}
			fs.before = func(op, path string) (int, error) {
				if op != "write" && op != "preallocate" && op != "open" {
					return 0, nil
				}
				if count++; full && count > nth {
					return part, syscall.ENOSPC
				}
				return 0, nil
			}
			l := create(t, fs, small)
			failures := 0
			attempt := func(f func() error) {
				t.Helper()
				before := show(l)
				full, count = true, 0
				err := f()
				full = false
				if err == nil {
					return
				}
				failures++
				if !errors.Is(err, ErrNoSpace) {
					t.Fatalf("part %d, operation %d: %v, want ErrNoSpace", part, nth, err)
				}
				if got := show(l); got != before {
					t.Fatalf("after a failure: %s, want %s", got, before)
				}
				verify(t, l, 300)
				// A restart would read the current contents of the disk.
				must(t, l.Append(nil, nil, true))
				must(t, f())
			}
			for i := uint64(1); i < 30; i += 4 {
				// Also a short write over the remains of a longer one.
				attempt(func() error { return l.Append(state(1, 7, i-1), run(i, i+3, 1, 300), true) })
			}
			attempt(func() error { return l.SaveMark(SnapshotMark{Index: 20, Term: 1, ConfState: conf(7)}) })
			attempt(func() error { return l.Append(state(1, 7, 28), run(33, 60, 1, 300), true) })
			if got, want := show(l), "1..60 t0@0 t1@1 hs=1/7/28 mark=20/1[7]"; got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
			verify(t, l, 300)
			l = reopen(t, l)
			if got, want := show(l), "1..60 t0@0 t1@1 hs=1/7/28 mark=20/1[7]"; got != want {
				t.Fatalf("part %d, operation %d, restart: got %s, want %s", part, nth, got, want)
			}
			verify(t, l, 300)
			attempt(func() error { return l.Reset(SnapshotMark{Index: 100, Term: 2, ConfState: conf(7)}) })
			l = reopen(t, l)
			if got, want := show(l), "101..100 t2@100 hs=2/0/100 mark=100/2[7]"; got != want {
				t.Fatalf("part %d, operation %d, reset: got %s, want %s", part, nth, got, want)
			}
			if failures == 0 {
				if nth < 2 {
					t.Fatalf("nothing fails from operation %d on", nth)
				}
				break
			}
		}
	}
}

// TestShorterAfterFailure: nothing of a failed write remains after a shorter
// one.
func TestShorterAfterFailure(t *testing.T) {
	full := false
	fs := &hookFS{FS: vfs.NewMem()}
	fs.before = func(op, path string) (int, error) {
		if op == "write" && full {
			full = false
			return 300_000, syscall.ENOSPC
		}
		return 0, nil
	}
	l := create(t, fs, Options{SegmentBytes: 1 << 20, NoBackground: true})
	full = true
	if err := l.Append(nil, run(1, 9, 1, 40_000), true); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("got %v, want ErrNoSpace", err)
	}
	must(t, l.Append(nil, run(1, 1, 1, 10), true))
	b := slurp(t, fs, "wal/0000000000000000-0000000000000000.wal")
	if rest := b[l.w.off:]; !allZero(rest) {
		t.Errorf("bytes of the failed write are left: %q", rest)
	}
}

// TestFailedWrite: after a failed sync, or a write that failed for a reason
// other than space, no write is accepted, even if the disk works again.
func TestFailedWrite(t *testing.T) {
	for _, bad := range []string{"sync", "write"} {
		t.Run(bad, func(t *testing.T) {
			broken := false
			fs := &hookFS{FS: vfs.NewMem()}
			fs.before = func(op, path string) (int, error) {
				if op == bad && broken {
					return 0, syscall.EIO
				}
				return 0, nil
			}
			l := create(t, fs, small)
			must(t, l.Append(state(1, 7, 1), run(1, 3, 1, 100), true))
			broken = true
			err := l.Append(nil, run(4, 5, 1, 100), true)
			if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) || errors.Is(err, ErrNoSpace) {
				t.Fatalf("Append: %v, want ErrFailed and EIO", err)
			}
			broken = false
			for name, f := range map[string]func() error{
				"Append":   func() error { return l.Append(nil, run(4, 5, 1, 100), true) },
				"SaveMark": func() error { return l.SaveMark(SnapshotMark{Index: 1, Term: 1, ConfState: conf(7)}) },
				"Compact":  func() error { return l.Compact(0) },
				"Reset":    func() error { return l.Reset(SnapshotMark{Index: 9, Term: 1, ConfState: conf(7)}) },
			} {
				if err := f(); !errors.Is(err, ErrFailed) {
					t.Errorf("%s after the failure: %v, want ErrFailed", name, err)
				}
			}
			if last, _ := l.LastIndex(); last != 3 {
				t.Errorf("LastIndex() = %d, want 3: the entries were never acknowledged", last)
			}
			l = reopen(t, l)
			if last, _ := l.LastIndex(); last < 3 {
				t.Errorf("LastIndex() after restart = %d, want at least 3", last)
			}
		})
	}
}

// image creates a log of several segments with its history and returns the
// disk.
func image(t *testing.T, seed uint64) (*vfs.MemFS, *history) {
	mem := vfs.NewMem()
	h := newHistory()
	o := small
	o.KeepSegments = -1
	l := create(t, mem, o)
	workload(t, l, h, rand.New(rand.NewPCG(seed, 3)), 30)
	must(t, l.Close())
	return mem, h
}

func copyMem(t *testing.T, from vfs.FS) *vfs.MemFS {
	to := vfs.NewMem()
	must(t, to.MkdirAll("wal", 0o700))
	segs, err := listSegments(from, "wal")
	must(t, err)
	for _, s := range segs {
		must(t, vfs.CopyAcrossFS(from, "wal/"+s.name(), to, "wal/"+s.name()))
	}
	return to
}

// TestByteFlips changes single bytes. Each change is detected or has no effect.
func TestByteFlips(t *testing.T) {
	detected := 0
	for seed := range uint64(4) {
		fs, h := image(t, seed)
		segs, err := listSegments(fs, "wal")
		must(t, err)
		rng := rand.New(rand.NewPCG(seed, 4))
		for range 400 {
			c := copyMem(t, fs)
			path := "wal/" + segs[rng.IntN(len(segs))].name()
			b := slurp(t, c, path)
			used := len(strings.TrimRight(string(b), "\x00"))
			at := rng.IntN(used)
			if rng.IntN(2) == 0 {
				b[at] ^= 1 << rng.IntN(8)
			} else {
				b[at] ^= byte(1 + rng.IntN(255))
			}
			spit(t, c, path, b)
			l, err := Open(c, "wal", small)
			if err != nil {
				detected++
				var ce *CorruptError
				if !errors.As(err, &ce) {
					t.Fatalf("flip at %d of %s: %v, want a CorruptError", at, path, err)
				}
				if ce.File != path && !strings.HasPrefix(ce.File, "wal/") {
					t.Fatalf("flip at %d of %s: error names %s", at, path, ce.File)
				}
				continue
			}
			if err := h.allows(l, len(h.states)-1, len(h.states)-1); err != nil {
				t.Errorf("seed %d: flip at %d of %s: %v", seed, at, path, err)
			}
			verify(t, l, 150)
			must(t, l.Close())
		}
	}
	if detected < 1500 {
		t.Errorf("%d of 1600 flips detected", detected)
	}
}

// TestFlipUnderReader: damage to an entry that is read back later is an error.
func TestFlipUnderReader(t *testing.T) {
	fs := vfs.NewMem()
	l := create(t, fs, small)
	must(t, l.Append(nil, run(1, 10, 1, 200), true))
	s := l.table.slots[2]
	path := "wal/0000000000000000-0000000000000000.wal"
	f, err := fs.OpenReadWrite(path, category)
	must(t, err)
	_, err = f.WriteAt([]byte{'!'}, int64(s.off8)*8+100)
	must(t, err)
	must(t, f.Close())
	_, err = l.Entries(1, 5, 1<<20)
	var ce *CorruptError
	if !errors.As(err, &ce) || ce.File != path || ce.Offset != int64(s.off8)*8 {
		t.Fatalf("Entries over a damaged one: %v, want CorruptError in %s at %d", err, path, s.off8*8)
	}
	if ents, err := l.Entries(1, 3, 1<<20); err != nil || len(ents) != 2 {
		t.Errorf("Entries before it: %d, %v", len(ents), err)
	}
}

// TestRepair cuts the last file at every length, as a crash may leave it.
func TestRepair(t *testing.T) {
	fs := vfs.NewMem()
	l := create(t, fs, small)
	must(t, l.Append(state(1, 7, 0), run(1, 4, 1, 700), true))
	must(t, l.Close())
	path := "wal/0000000000000000-0000000000000000.wal"
	b := slurp(t, fs, path)
	head := int(80) // up to the snapshot record
	used := len(strings.TrimRight(string(b), "\x00"))
	for n := head; n <= used; n += 5 {
		for _, fill := range []int{0, 4096} {
			c := vfs.NewMem()
			must(t, c.MkdirAll("wal", 0o700))
			cut := slices.Clone(b[:n])
			if fill > n { // later sectors were never written
				cut = append(cut[:n&^(sectorSize-1)], make([]byte, fill-n&^(sectorSize-1))...)
				if len(cut) < head || allZero(cut) {
					continue
				}
			}
			spit(t, c, path, cut)
			l, err := Open(c, "wal", small)
			if err != nil {
				t.Fatalf("cut at %d, filled to %d: %v", n, fill, err)
			}
			want, _ := l.LastIndex()
			must(t, l.Append(nil, run(want+1, want+2, 1, 700), true))
			l = reopen(t, l)
			verify(t, l, 700)
			if last, _ := l.LastIndex(); last != want+2 {
				t.Fatalf("cut at %d: after the repair %d entries, want %d", n, last, want+2)
			}
			must(t, l.Close())
		}
	}
}

// TestLostCommit: a log that lacks entries which it says are committed must
// not open.
func TestLostCommit(t *testing.T) {
	fs := vfs.NewMem()
	l := create(t, fs, small)
	must(t, l.Append(state(1, 7, 0), run(1, 4, 1, 100), true))
	must(t, l.Close())
	path := "wal/0000000000000000-0000000000000000.wal"
	b := slurp(t, fs, path)
	// A state with a higher commit index and a valid checksum, after the last
	// record.
	rec, _ := appendRecord(nil, l.w.crc, TypeState, appendHardState(nil, state(1, 7, 9)))
	copy(b[l.w.off:], rec)
	spit(t, fs, path, b)
	var ce *CorruptError
	if _, err := Open(fs, "wal", small); !errors.As(err, &ce) || !strings.Contains(err.Error(), "committed up to 9, last entry is 4") {
		t.Errorf("Open: %v", err)
	}
	if got := slurp(t, fs, path); !slices.Equal(got, b) {
		t.Error("Open changed the file that it refused")
	}
}

// TestReaders reads concurrently with a writer that appends, overwrites,
// marks, compacts and cuts. Run it with -race.
func TestReaders(t *testing.T) {
	o := small
	o.NoBackground = false
	l := create(t, vfs.NewMem(), o)
	must(t, l.Append(state(1, 7, 0), run(1, 5, 1, 150), true))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				first, _ := l.FirstIndex()
				last, _ := l.LastIndex()
				ents, err := l.Entries(first, last+1, 4000)
				if err != nil {
					continue // compacted or replaced between the calls
				}
				for i, e := range ents {
					if e.GetIndex() != first+uint64(i) || string(e.Data) != string(payload(e.GetIndex(), e.GetTerm(), 150)) {
						t.Errorf("entry %d is %d: %q", first+uint64(i), e.GetIndex(), e.Data)
					}
				}
				_, _ = l.Term(last)
				_, _, _ = l.InitialState()
				l.Mark()
			}
		})
	}
	next, term := uint64(6), uint64(1)
	for i := range 300 {
		if i%7 == 0 {
			term++
			next -= 2
		}
		must(t, l.Append(state(term, 7, next-3), run(next, next+3, term, 150), i%3 == 0))
		next += 4
		if i%20 == 19 {
			at := next - 10
			mt, err := l.Term(at)
			must(t, err)
			must(t, l.SaveMark(SnapshotMark{Index: ids.Index(at), Term: ids.Term(mt), ConfState: conf(7)}))
			must(t, l.Compact(ids.Index(at)-5))
		}
	}
	close(stop)
	wg.Wait()
}
