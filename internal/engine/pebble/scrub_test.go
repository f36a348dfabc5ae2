package pebble

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/clock"
	"quorate/internal/engine"
	"quorate/internal/scrub"
)

// flipped runs f while one byte of a file is changed.
func flipped(t *testing.T, fs vfs.FS, path string, at int64, x byte, f func()) {
	t.Helper()
	change := func() {
		file, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		var b [1]byte
		if _, err := file.ReadAt(b[:], at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= x
		if _, err := file.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
	}
	change()
	f()
	change()
}

func scrubbed(t *testing.T, fs vfs.FS, e engine.Engine) *scrub.Reader {
	t.Helper()
	r := &scrub.Reader{FS: fs, Clock: clock.System}
	r.Begin(t.Context())
	if err := e.(engine.Scrubber).Scrub(r); err != nil {
		t.Fatal(err)
	}
	return r
}

// Whichever bit of a table flips, the scrub names the table and a block at or in front of the
// flip: every byte of a table is covered by a checksum.
func TestScrubFindsFlips(t *testing.T) {
	fs := vfs.NewMem()
	e := open1(t, "db", Options{FS: fs})
	defer e.Close()
	for range 3 {
		fill(t, e, 1500)
		if err := e.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Compact(context.Background()); err != nil { // so that no table is replaced meanwhile
		t.Fatal(err)
	}
	r := scrubbed(t, fs, e)
	if r.Damage > 0 || r.Files == 0 || r.Bytes < 10_000 {
		t.Fatalf("%d files, %d bytes, damage %v", r.Files, r.Bytes, r.Found)
	}
	tables, err := e.(*store).tables()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(5, 5))
	for range 2000 {
		path := tables[rng.IntN(len(tables))]
		st, err := fs.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		at, x := rng.Int64N(st.Size()), byte(1)<<rng.IntN(8)
		flipped(t, fs, path, at, x, func() {
			r := scrubbed(t, fs, e)
			if r.Damage == 0 {
				t.Fatalf("%s: byte %d of %d changed by %#x: nothing was found", path, at, st.Size(), x)
			}
			for _, d := range r.Found {
				if d.File != path || d.Offset < 0 || d.Offset > at && at < st.Size()-100 {
					t.Fatalf("%s: byte %d of %d changed by %#x: found %v", path, at, st.Size(), x, d)
				}
			}
		})
	}
	if r := scrubbed(t, fs, e); r.Damage > 0 {
		t.Errorf("after the flips were undone: %v", r.Found)
	}
}

// A scrub does not take what a flush or a compaction does meanwhile for damage.
func TestScrubOfLivingStore(t *testing.T) {
	fs := vfs.NewMem()
	e := open1(t, "db", Options{FS: fs, MemTableBytes: 64 << 10})
	defer e.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 30 {
			fill(t, e, 300)
			if err := e.Flush(context.Background()); err != nil {
				t.Error(err)
			}
		}
		if err := e.Compact(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if r := scrubbed(t, fs, e); r.Damage > 0 {
			t.Fatalf("found %v", r.Found)
		}
	}
}

// A damaged manifest is named.
func TestScrubFindsDamagedManifest(t *testing.T) {
	fs := vfs.NewMem()
	e := open1(t, "db", Options{FS: fs})
	defer e.Close()
	for range 4 {
		fill(t, e, 10)
		if err := e.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	names, err := fs.List("db")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "MANIFEST") {
			flipped(t, fs, fs.PathJoin("db", name), 20, 1, func() {
				if r := scrubbed(t, fs, e); r.Damage != 1 || !strings.HasSuffix(r.Found[0].File, name) {
					t.Errorf("found %v, want damage in %s", r.Found, name)
				}
			})
		}
	}
}
