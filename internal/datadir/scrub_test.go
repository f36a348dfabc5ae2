package datadir

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/clock"
	"quorate/internal/scrub"
)

// Whichever bit of a small file or of a received snapshot flips, the scrub names the file.
func TestScrubFindsFlips(t *testing.T) {
	fs := vfs.NewMem()
	l := Layout{FS: fs, DataDir: "data"}
	if err := fs.MkdirAll(l.Snap(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.WriteOwner(1, 2); err != nil {
		t.Fatal(err)
	}
	if err := l.Use("data/member/store-7"); err != nil {
		t.Fatal(err)
	}
	h := Home{Layout: l}
	if err := h.Receive(t.Context(), 7, 1, bytes.NewReader(bytes.Repeat([]byte("state "), 2000))); err != nil {
		t.Fatal(err)
	}
	received, err := h.received(7)
	if err != nil {
		t.Fatal(err)
	}
	run := func() *scrub.Reader {
		r := &scrub.Reader{FS: fs, Clock: clock.System}
		r.Begin(t.Context())
		if err := l.Scrub(r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := run(); r.Damage > 0 || r.Files != 3 {
		t.Fatalf("%d files, damage %v", r.Files, r.Found)
	}
	paths := append(received, l.Owner(), l.pointerFile())
	rng := rand.New(rand.NewPCG(4, 4))
	for range 2000 {
		path := paths[rng.IntN(len(paths))]
		st, err := fs.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		at, x := rng.Int64N(st.Size()), byte(1)<<rng.IntN(8)
		change := func() {
			f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var b [1]byte
			if _, err := f.ReadAt(b[:], at); err != nil {
				t.Fatal(err)
			}
			b[0] ^= x
			if _, err := f.WriteAt(b[:], at); err != nil {
				t.Fatal(err)
			}
		}
		change()
		r := run()
		change()
		if r.Damage != 1 || r.Found[0].File != path {
			t.Fatalf("%s: byte %d changed by %#x: found %v", path, at, x, r.Found)
		}
	}
}
