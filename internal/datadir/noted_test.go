package datadir

import (
	"errors"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/durable"
	"quorate/internal/engine"
)

func TestNotes(t *testing.T) {
	fs := vfs.NewMem()
	if _, err := ReadNote(fs, "N"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a note that is not there: %v", err)
	}
	for _, text := range []string{"", "member 1 of cluster 2\n", "no newline"} {
		must(t, WriteNote(fs, "N", text))
		if got, err := ReadNote(fs, "N"); err != nil || got != text {
			t.Errorf("read %q, %v, want %q", got, err, text)
		}
		b, err := readSmall(fs, "N")
		must(t, err)
		var damaged []string
		for i := range b {
			for _, x := range []byte{1, 0x20, 0x80, 0xff} {
				c := []byte(b)
				c[i] ^= x
				damaged = append(damaged, string(c))
			}
			damaged = append(damaged, b[:i], b[i+1:])
		}
		for _, d := range damaged {
			must(t, durable.WriteFile(fs, "N", []byte(d)))
			var bad *engine.CorruptionError
			if got, err := ReadNote(fs, "N"); !errors.As(err, &bad) || bad.File != "N" {
				t.Errorf("%q instead of %q: read %q, %v", d, b, got, err)
			}
		}
	}
}

func FuzzReadNote(f *testing.F) {
	f.Add([]byte("store\ncrc32c 00000000\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		fs := vfs.NewMem()
		must(t, durable.WriteFile(fs, "N", b))
		text, err := ReadNote(fs, "N")
		if err != nil {
			return
		}
		must(t, WriteNote(fs, "N", text))
		if back, err := readSmall(fs, "N"); err != nil || back != string(b) {
			t.Errorf("%q was taken for %q, which is written as %q", b, text, back)
		}
	})
}
