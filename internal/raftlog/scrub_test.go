package raftlog

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/scrub"
)

func scrubbed(t *testing.T, fs vfs.FS, l *Log) *scrub.Reader {
	t.Helper()
	r := &scrub.Reader{FS: fs, Clock: clock.System}
	r.Begin(t.Context())
	must(t, l.Scrub(r))
	return r
}

// Whichever bit of a record flips, the scrub names the file and the record, while the log is
// in use. Only padding between records, which has no meaning, may change unnoticed.
func TestScrubFindsFlips(t *testing.T) {
	fs := vfs.NewMem()
	l := create(t, fs, Options{SegmentBytes: 16 << 10, NoBackground: true})
	var offsets = map[string][]int64{} // of the records
	for i := uint64(1); i <= 200; i++ {
		must(t, l.Append(state(2, 1, i-1), run(i, i, 2, int(i%7)*50), true))
	}
	if r := scrubbed(t, fs, l); r.Damage > 0 || r.Files < 3 {
		t.Fatalf("%d files, damage %v", r.Files, r.Found)
	}
	padding := map[string]map[int64]bool{}
	segs := append([]segment(nil), l.segs...)
	for _, s := range segs {
		path := l.dir.segment(s)
		f, err := fs.Open(path)
		must(t, err)
		st, err := f.Stat()
		must(t, err)
		size := st.Size()
		if s.seq == l.w.seg.seq {
			size = l.w.off
		}
		padding[path] = map[int64]bool{}
		end, _, err := scanSegment(f, path, size, false, 0, func(off int64, _ uint32, r Record) error {
			offsets[path] = append(offsets[path], off)
			return nil
		})
		must(t, err)
		offsets[path] = append(offsets[path], end)
		for i, off := range offsets[path][:len(offsets[path])-1] {
			var head [8]byte
			_, err := f.ReadAt(head[:], off)
			must(t, err)
			for p := offsets[path][i+1] - int64(head[7]&7); p < offsets[path][i+1]; p++ {
				padding[path][p] = true
			}
		}
		must(t, f.Close())
	}
	rng := rand.New(rand.NewPCG(9, 9))
	found, unused, later := 0, 0, 0
	for range 3000 {
		path := l.dir.segment(segs[rng.IntN(len(segs))])
		ends := offsets[path]
		at, x := rng.Int64N(ends[len(ends)-1]), byte(1)<<rng.IntN(8)
		change := func() {
			f, err := fs.OpenReadWrite(path, category)
			must(t, err)
			defer f.Close()
			var b [1]byte
			_, err = f.ReadAt(b[:], at)
			must(t, err)
			b[0] ^= x
			_, err = f.WriteAt(b[:], at)
			must(t, err)
		}
		change()
		r := scrubbed(t, fs, l)
		change()
		switch {
		case padding[path][at]:
			unused++
		case r.Damage == 0:
			t.Errorf("%s: byte %d changed by %#x: nothing was found", path, at, x)
		case r.Found[0].File < path:
			t.Errorf("%s: byte %d changed by %#x: found %v", path, at, x, r.Found)
		case r.Found[0].File != path || r.Found[0].Offset > at:
			later++ // the checksum does not cover the type of a record: a later record contradicts it
		default:
			found++
		}
	}
	t.Logf("%d flips were found, %d more by what follows them, %d were in padding", found, later, unused)
	if found < 2000 {
		t.Errorf("only %d flips were in records", found)
	}
}

// Records that are written while the scrub runs are not taken for damage, and files that
// Compact removes are skipped.
func TestScrubOfLivingLog(t *testing.T) {
	fs := vfs.NewMem()
	l := create(t, fs, Options{SegmentBytes: 8 << 10, NoBackground: true})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := ids.Index(1); i <= 600; i++ {
			if err := l.Append(state(2, 1, uint64(i-1)), []*raftpb.Entry{entry(uint64(i), 2, 200)}, true); err != nil {
				t.Error(err)
			}
			if i%100 == 0 {
				if err := l.SaveMark(SnapshotMark{Index: i - 50, Term: 2, ConfState: conf(1)}); err != nil {
					t.Error(err)
				}
				if err := l.Compact(i - 50); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if r := scrubbed(t, fs, l); r.Damage > 0 {
			t.Fatalf("found %v", strings.TrimSpace(r.Found[0].String()))
		}
	}
}
