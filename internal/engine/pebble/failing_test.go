package pebble

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/engine"
)

// failingFS fails one kind of operation on tables.
type failingFS struct {
	vfs.FS
	op       string
	err      error
	bad      atomic.Bool
	good     atomic.Int64 // if set, this many tables are created before everything fails
	attempts atomic.Int64
}

func (f *failingFS) check(op, name string) error {
	if op != f.op || !f.bad.Load() || !strings.HasSuffix(name, ".sst") {
		return nil
	}
	f.attempts.Add(1)
	return f.err
}

func (f *failingFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.check("create", name); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(name, ".sst") && f.good.Add(-1) == 0 {
		f.bad.Store(true)
	}
	return &failingFile{file, f, name}, nil
}

type failingFile struct {
	vfs.File
	fs   *failingFS
	name string
}

func (f *failingFile) Write(b []byte) (int, error) {
	if err := f.fs.check("write", f.name); err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

func (f *failingFile) Sync() error {
	if err := f.fs.check("sync", f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *failingFile) SyncData() error { return f.Sync() }

func (f *failingFile) SyncTo(int64) (bool, error) { return false, nil }

// longPauses makes an engine that has failed retry once and then wait.
func longPauses(t *testing.T) {
	old := brokenPause
	brokenPause = time.Hour
	t.Cleanup(func() { brokenPause = old })
}

// Any disk error other than "full" stops the engine: the owner is notified once, pending
// flushes and writes return, and nothing is retried in a loop.
func TestFailingDisk(t *testing.T) {
	longPauses(t)
	for _, op := range []string{"create", "write", "sync"} {
		for _, errno := range []syscall.Errno{syscall.EIO, syscall.EROFS, syscall.EDQUOT, syscall.ENOENT} {
			t.Run(op+" "+errno.Error(), func(t *testing.T) {
				fs := &failingFS{FS: vfs.NewMem(), op: op, err: errno}
				told := make(chan error, 10)
				e := open1(t, "db", Options{FS: fs, MemTableBytes: 64 << 10, OnFailure: func(err error) { told <- err }})
				fill(t, e, 100)
				fs.bad.Store(true)
				if err := e.Flush(context.Background()); !errors.Is(err, ErrFailed) || !errors.Is(err, errno) {
					t.Errorf("Flush: %v, want ErrFailed for %v", err, errno)
				}
				if err := <-told; !errors.Is(err, ErrFailed) || !errors.Is(err, errno) {
					t.Errorf("told of %v, want ErrFailed for %v", err, errno)
				}
				wantAll(t, e, 100) // still readable
				var err error
				for i := 0; err == nil; i++ {
					b := e.NewBatch()
					b.Set(key(i), value(i))
					err = b.Commit()
				}
				if !errors.Is(err, errno) {
					t.Errorf("Commit without memory: %v, want %v", err, errno)
				}
				if err := e.Close(); err != nil && !errors.Is(err, errno) {
					t.Errorf("Close: %v", err)
				}
				if n := fs.attempts.Load(); n > 5 {
					t.Errorf("%d attempts", n)
				}
				if len(told) > 0 {
					t.Errorf("told again: %v", <-told)
				}
			})
		}
	}
}

// A failing compaction has the same effect as a failing flush.
func TestFailingCompaction(t *testing.T) {
	longPauses(t)
	fs := &failingFS{FS: vfs.NewMem(), op: "write", err: syscall.EIO}
	fs.good.Store(3) // two flushes; the third is what a compaction writes
	told := make(chan error, 1)
	e := open1(t, "db", Options{FS: fs, OnFailure: func(err error) { told <- err }})
	for range 2 {
		fill(t, e, 100) // overlapping tables
		if err := e.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Compact(context.Background()); !errors.Is(err, syscall.EIO) {
		t.Errorf("Compact: %v, want EIO", err)
	}
	if err := <-told; !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Errorf("told of %v", err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// A sync that fails for lack of space is not repeated, as its pages may be gone; the
// flush is retried after a pause.
func TestSyncWithoutRoom(t *testing.T) {
	old := brokenPause
	brokenPause = time.Millisecond
	t.Cleanup(func() { brokenPause = old })
	fs := &failingFS{FS: vfs.NewMem(), op: "sync", err: syscall.ENOSPC}
	e := open1(t, "db", Options{FS: fs, OnBackgroundError: func(err error) {
		if errors.Is(err, syscall.ENOSPC) {
			fs.bad.Store(false)
		}
	}, OnFailure: func(err error) { t.Errorf("failed: %v", err) }})
	fill(t, e, 100)
	fs.bad.Store(true)
	if err := e.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := fs.attempts.Load(); n != 1 {
		t.Errorf("%d syncs failed, want 1", n)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open1(t, "db", Options{FS: fs})
	wantAll(t, e, 100)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// A writer that waits for space can be told to give up.
func TestGiveUp(t *testing.T) {
	fs := &fullFS{FS: vfs.NewMem()}
	giveUp := make(chan struct{})
	full := make(chan bool, 10)
	e := open1(t, "db", Options{FS: fs, MemTableBytes: 64 << 10, GiveUp: giveUp, OnSpace: func(lack error) { full <- lack != nil }})
	fs.full.Store(true)
	done := make(chan error)
	go func() {
		for i := 0; ; i++ {
			b := e.NewBatch()
			b.Set(key(i), value(i))
			if err := b.Commit(); err != nil {
				done <- err
				return
			}
		}
	}()
	if !<-full {
		t.Error("told of room on a full disk")
	}
	select {
	case err := <-done:
		t.Errorf("Commit returned %v on a full disk", err)
	default:
	}
	close(giveUp)
	if err := <-done; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Commit: %v, want ENOSPC", err)
	}
	if err := e.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Close: %v", err)
	}
}
