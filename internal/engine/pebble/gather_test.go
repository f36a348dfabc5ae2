package pebble

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// countingFile counts writes and fails on request.
type countingFile struct {
	vfs.File
	writes int
	fail   error
}

func (f *countingFile) Write(b []byte) (int, error) {
	if f.fail != nil {
		return 0, f.fail
	}
	f.writes++
	return f.File.Write(b)
}

func TestGather(t *testing.T) {
	fs := vfs.NewMem()
	create := func(name string) (vfs.File, *countingFile) {
		f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		c := &countingFile{File: f}
		g, err := gather(name, newPacer(func() bool { return false }), c, nil)
		if err != nil {
			t.Fatal(err)
		}
		return g, c
	}
	r := rand.New(rand.NewSource(1))
	g, c := create("1.sst")
	var want []byte
	check := func(when string) {
		t.Helper()
		f, err := fs.Open("1.sst")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: the file has %d bytes, want %d; %v", when, len(got), len(want), err)
		}
	}
	for i := range 2000 {
		n := r.Intn(6000)
		if i%500 == 0 {
			n += gatherBytes
		}
		b := make([]byte, n)
		r.Read(b)
		want = append(want, b...)
		if k, err := g.Write(b); err != nil || k != n {
			t.Fatal(k, err)
		}
		if i%400 == 100 {
			var err error
			switch r.Intn(4) {
			case 0:
				err = g.Sync()
			case 1:
				err = g.SyncData()
			case 2:
				_, err = g.SyncTo(int64(len(want)))
			case 3:
				_, err = g.Stat()
			}
			if err != nil {
				t.Fatal(err)
			}
			check("after a sync")
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	check("after close")
	if limit := len(want)/(gatherBytes/2) + 20; c.writes > limit {
		t.Errorf("%d writes of %d bytes", c.writes, len(want))
	}

	g, c = create("2.sst")
	c.fail = errors.New("broken")
	if _, err := g.Write([]byte("x")); err != nil {
		t.Errorf("a small write: %v", err)
	}
	if err := g.Sync(); !errors.Is(err, c.fail) {
		t.Errorf("a sync after a write that failed: %v", err)
	}
	if err := g.Close(); !errors.Is(err, c.fail) {
		t.Errorf("a close after a write that failed: %v", err)
	}
	if g, c = create("MANIFEST"); g != c {
		t.Error("writes to other files than tables are collected")
	}
}
