package raftlog

import (
	"errors"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestNoDescriptor: without a descriptor for a new segment nothing is appended, the log stays
// usable, and the same call succeeds when there is one.
func TestNoDescriptor(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE} {
		scarce := false
		fs := &hookFS{FS: vfs.NewMem()}
		fs.before = func(op, path string) (int, error) {
			if op == "open" && scarce {
				return 0, errno
			}
			return 0, nil
		}
		l := create(t, fs, small)
		must(t, l.Append(state(1, 7, 0), run(1, 9, 1, 300), true))
		scarce = true
		before := show(l)
		steps := []func() error{
			func() error { return l.Append(nil, run(10, 30, 1, 300), true) },
			func() error { return l.Reset(SnapshotMark{Index: 100, Term: 2, ConfState: conf(7)}) },
		}
		for i, step := range steps {
			if err := step(); !errors.Is(err, ErrNoSpace) || !errors.Is(err, errno) {
				t.Fatalf("step %d: %v, want ErrNoSpace and %v", i, err, errno)
			}
			if got := show(l); got != before {
				t.Fatalf("step %d: %s, want %s", i, got, before)
			}
		}
		scarce = false
		must(t, steps[0]())
		verify(t, l, 300)
		l = reopen(t, l)
		if last, _ := l.LastIndex(); last != 30 {
			t.Errorf("LastIndex() = %d, want 30", last)
		}
	}
}
