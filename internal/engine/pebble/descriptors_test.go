package pebble

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/descriptors"
	"quorate/internal/engine"
)

// scarceFS has no file descriptors for tables while it is set.
type scarceFS struct {
	vfs.FS
	scarce  atomic.Bool
	refused atomic.Int64
	opened  atomic.Int64 // tables that are open for reads
}

func (s *scarceFS) check(name string) error {
	if !s.scarce.Load() || !strings.HasSuffix(name, ".sst") {
		return nil
	}
	s.refused.Add(1)
	return syscall.EMFILE
}

func (s *scarceFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := s.check(name); err != nil {
		return nil, err
	}
	return s.FS.Create(name, c)
}

func (s *scarceFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := s.check(name); err != nil {
		return nil, err
	}
	f, err := s.FS.Open(name, opts...)
	if err != nil || !strings.HasSuffix(name, ".sst") {
		return f, err
	}
	s.opened.Add(1)
	return &scarceFile{f, s}, nil
}

type scarceFile struct {
	vfs.File
	of *scarceFS
}

func (f *scarceFile) Close() error {
	f.of.opened.Add(-1)
	return f.File.Close()
}

// A flush without a descriptor waits for one, and does not end the engine.
func TestFlushWithoutDescriptor(t *testing.T) {
	fs := &scarceFS{FS: vfs.NewMem()}
	lacks := make(chan error, 10)
	e := open1(t, "db", Options{FS: fs, OnSpace: func(lack error) { lacks <- lack }, OnFailure: func(err error) { t.Errorf("failed: %v", err) }})
	fill(t, e, 500)
	fs.scarce.Store(true)
	done := make(chan error, 1)
	go func() { done <- e.Flush(context.Background()) }()
	if err := <-lacks; !descriptors.Exhausted(err) {
		t.Errorf("told of %v", err)
	}
	fill(t, e, 600) // in memory, while the flush waits
	select {
	case err := <-done:
		t.Fatalf("Flush returned %v", err)
	default:
	}
	fs.scarce.Store(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := <-lacks; err != nil {
		t.Errorf("told of %v", err)
	}
	wantAll(t, e, 600)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// overlappingTables makes an engine with two tables of the same keys. It is opened again when
// there are no descriptors, so that none of them is open.
func overlappingTables(t *testing.T, fs *scarceFS, o Options) engine.Engine {
	t.Helper()
	o.FS = fs
	e := open1(t, "db", o)
	for range 2 {
		fill(t, e, 100)
		if err := e.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	fs.scarce.Store(true)
	return open1(t, "db", o)
}

// A read without a descriptor waits for a bounded time. Then it fails, and the next one
// succeeds when there are descriptors.
func TestReadWithoutDescriptor(t *testing.T) {
	old := readPatience
	readPatience = 50 * time.Millisecond
	t.Cleanup(func() { readPatience = old })
	fs := &scarceFS{FS: vfs.NewMem()}
	e := overlappingTables(t, fs, Options{OnFailure: func(err error) { t.Errorf("failed: %v", err) }})
	if _, err := e.Get(nil, key(1)); !descriptors.Exhausted(err) || !strings.Contains(err.Error(), descriptors.WayOut) {
		t.Errorf("Get: %v", err)
	}
	if n := fs.refused.Load(); n < 2 {
		t.Errorf("gave up after %d attempts", n)
	}
	fs.scarce.Store(false)
	wantAll(t, e, 100)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// An owner that gives up ends reads that wait, with an error that nobody retries.
func TestReadGivenUp(t *testing.T) {
	fs := &scarceFS{FS: vfs.NewMem()}
	giveUp := make(chan struct{})
	e := overlappingTables(t, fs, Options{GiveUp: giveUp, OnFailure: func(err error) { t.Errorf("failed: %v", err) }})
	close(giveUp)
	if _, err := e.Get(nil, key(1)); !errors.Is(err, engine.ErrClosed) || descriptors.Exhausted(err) {
		t.Errorf("Get: %v", err)
	}
	fs.scarce.Store(false)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// A compaction that cannot open its tables is tried again.
func TestCompactionWithoutDescriptor(t *testing.T) {
	oldPatience, oldPause := readPatience, brokenPause
	readPatience, brokenPause = 20*time.Millisecond, time.Millisecond
	t.Cleanup(func() { readPatience, brokenPause = oldPatience, oldPause })
	fs := &scarceFS{FS: vfs.NewMem()}
	reported := make(chan error, 100)
	o := Options{FS: fs, OnFailure: func(err error) { t.Errorf("failed: %v", err) }, OnBackgroundError: func(err error) {
		select {
		case reported <- err:
		default:
		}
	}}
	e := overlappingTables(t, fs, o)
	done := make(chan error, 1)
	go func() { done <- e.Compact(context.Background()) }()
	if err := <-reported; !descriptors.Exhausted(err) {
		t.Errorf("reported %v", err)
	}
	fs.scarce.Store(false)
	if err := <-done; err != nil && !descriptors.Exhausted(err) {
		t.Errorf("Compact: %v", err)
	}
	if err := e.Compact(context.Background()); err != nil {
		t.Errorf("Compact: %v", err)
	}
	wantAll(t, e, 100)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// The engine keeps no more tables open than it may, even fewer than Pebble's least number.
func TestFewFiles(t *testing.T) {
	fs := &scarceFS{FS: vfs.NewMem()}
	e := open1(t, "db", Options{FS: fs, CacheBytes: 1, Files: descriptors.Store{Cached: 8, Direct: 4}})
	const tables = 40
	for i := range tables { // they do not overlap, so none is compacted
		putRecords(t, e, 100*i, 100*i+100)
		flushed(t, e)
	}
	for i := range tables {
		if _, err := e.Get(nil, recordKey(100*i)); err != nil {
			t.Fatal(err)
		}
	}
	if found(t, e, every(0, 100*tables, 7)) == 0 {
		t.Error("the finder finds nothing")
	}
	// Pebble closes files in the background, and rounds the parts of its cache up.
	for deadline := time.Now().Add(10 * time.Second); fs.opened.Load() > 15+4; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d tables stay open", fs.opened.Load())
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if n := fs.opened.Load(); n != 0 {
		t.Errorf("%d tables are left open", n)
	}
}

// A finder that finds no descriptor leaves its keys to an iterator, and opens the table later.
func TestFinderWithoutDescriptor(t *testing.T) {
	fs := &scarceFS{FS: vfs.NewMem()}
	e := open1(t, "db", Options{FS: fs, CacheBytes: 1})
	putRecords(t, e, 0, 1000)
	flushed(t, e)
	fs.scarce.Store(true)
	if n := found(t, e, every(0, 1000, 10)); n != 0 {
		t.Errorf("%d found without a descriptor", n)
	}
	fs.scarce.Store(false)
	if n := found(t, e, every(0, 1000, 10)); n != 100 {
		t.Errorf("%d found, want 100", n)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
