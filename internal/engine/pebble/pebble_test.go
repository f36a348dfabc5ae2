package pebble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	randv2 "math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/engine"
	"quorate/internal/engine/enginetest"
)

func open1(t *testing.T, dir string, o Options) engine.Engine {
	t.Helper()
	e, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func subject(t *testing.T, fs *vfs.MemFS) *enginetest.Subject {
	e := open1(t, "db", Options{FS: fs, MemTableBytes: 256 << 10})
	return &enginetest.Subject{
		Engine: e,
		Crash: func(t *testing.T) *enginetest.Subject {
			// Half of what was not synced is lost, in all the ways that a disk may do it.
			left := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: randv2.New(randv2.NewPCG(1, 2))})
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			return subject(t, left)
		},
		OpenCheckpoint: func(t *testing.T, dir string) engine.Engine { return open1(t, dir, Options{FS: fs}) },
		Dir:            func(name string) string { return "checkpoint-" + name },
	}
}

func TestContract(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) *enginetest.Subject { return subject(t, vfs.NewCrashableMem()) })
}

// On the real file system a checkpoint is opened as a separate engine.
func TestRealDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "member", "db")
	e := open1(t, dir, Options{})
	fill(t, e, 1000)
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second Open: %v, want ErrInUse naming %s", err, dir)
	}
	if err := e.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open1(t, dir, Options{})
	wantAll(t, e, 1000)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

func key(i int) []byte { return []byte(fmt.Sprintf("key-%08d", i)) }

func value(i int) []byte {
	v := make([]byte, 200)
	rand.New(rand.NewSource(int64(i))).Read(v)
	return v
}

func fill(t *testing.T, e engine.Engine, n int) {
	t.Helper()
	for i := range n {
		b := e.NewBatch()
		b.Set(key(i), value(i))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

func wantAll(t *testing.T, e engine.Engine, n int) {
	t.Helper()
	for i := range n {
		if got, err := e.Get(nil, key(i)); err != nil || string(got) != string(value(i)) {
			t.Fatalf("Get(%s): %d bytes, %v", key(i), len(got), err)
		}
	}
}

// Bit flips are detected and named, wherever they are, and never served.
func TestCorruption(t *testing.T) {
	for _, tt := range []struct{ name, glob string }{
		{"table", "*.sst"},
		{"list of files", "MANIFEST-*"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			e := open1(t, dir, Options{})
			for range 5 {
				fill(t, e, 2000)
				if err := e.Flush(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(dir, tt.glob))
			if err != nil || len(files) == 0 {
				t.Fatalf("no %s: %v", tt.glob, err)
			}
			file := files[len(files)-1]
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for i := len(b) / 4; i < len(b)/2; i += 7 {
				b[i] ^= 0x55
			}
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			var bad *engine.CorruptionError
			e, err = Open(dir, Options{OnBackgroundError: func(error) {}})
			if err == nil {
				defer e.Close()
				err = readAll(e, 2000)
			}
			if !errors.As(err, &bad) {
				t.Fatalf("error %v, want a CorruptionError", err)
			}
			if !strings.Contains(bad.File, filepath.Base(file)) {
				t.Errorf("error names %q, want %s", bad.File, filepath.Base(file))
			}
		})
	}
}

// readAll returns the first error; a value other than the one written is an error.
func readAll(e engine.Engine, n int) error {
	for i := range n {
		v, err := e.Get(nil, key(i))
		if err != nil {
			return err
		}
		if string(v) != string(value(i)) {
			return fmt.Errorf("key %s has other bytes than were written", key(i))
		}
	}
	return nil
}

func TestMissingTable(t *testing.T) {
	dir := t.TempDir()
	e := open1(t, dir, Options{})
	fill(t, e, 100)
	if err := e.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, Options{})
	if err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(filepath.Base(files[0]), ".sst")) {
		t.Errorf("Open without %s: %v", files[0], err)
	}
}

// fullFS is a disk that can be full.
type fullFS struct {
	vfs.FS
	full atomic.Bool
}

func (f *fullFS) err() error {
	if f.full.Load() {
		return syscall.ENOSPC
	}
	return nil
}

func (f *fullFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	return &fullFile{file, f}, err
}

type fullFile struct {
	vfs.File
	fs *fullFS
}

func (f *fullFile) Write(b []byte) (int, error) {
	if err := f.fs.err(); err != nil {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, err
	}
	return f.File.Write(b)
}

// A full disk is reported, loses nothing, and writes continue once there is space.
func TestDiskFull(t *testing.T) {
	fs := &fullFS{FS: vfs.NewMem()}
	reported := make(chan error, 1)
	var once sync.Once
	e := open1(t, "db", Options{FS: fs, OnBackgroundError: func(err error) { once.Do(func() { reported <- err }) }})
	fill(t, e, 500)
	fs.full.Store(true)
	flushed := make(chan error, 1)
	go func() { flushed <- e.Flush(context.Background()) }()
	if err := <-reported; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("reported %v", err)
	}
	fill(t, e, 600) // in memory, while the flush waits
	wantAll(t, e, 600)
	select {
	case err := <-flushed:
		t.Fatalf("Flush returned %v on a full disk", err)
	default:
	}
	fs.full.Store(false)
	if err := <-flushed; err != nil {
		t.Fatal(err)
	}
	if err := e.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open1(t, "db", Options{FS: fs})
	wantAll(t, e, 600)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// A full disk does not prevent closing an engine.
func TestCloseWhileDiskFull(t *testing.T) {
	fs := &fullFS{FS: vfs.NewMem()}
	reported := make(chan struct{})
	var once sync.Once
	e := open1(t, "db", Options{FS: fs, OnBackgroundError: func(error) { once.Do(func() { close(reported) }) }})
	fill(t, e, 500)
	fs.full.Store(true)
	flushed := make(chan error, 1)
	go func() { flushed <- e.Flush(context.Background()) }()
	<-reported
	if err := e.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Close: %v", err)
	}
	if err := <-flushed; !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Flush: %v, want ErrClosed", err)
	}
}

// Callers of Flush that give up on a full disk leave no goroutines behind: only one call
// at a time waits in Pebble.
func TestFlushGivenUp(t *testing.T) {
	fs := &fullFS{FS: vfs.NewMem()}
	reported := make(chan struct{})
	var once sync.Once
	e := open1(t, "db", Options{FS: fs, OnBackgroundError: func(error) { once.Do(func() { close(reported) }) }})
	fill(t, e, 500)
	fs.full.Store(true)
	flushed := make(chan error, 1)
	go func() { flushed <- e.Flush(context.Background()) }()
	<-reported
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if err := e.Flush(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Flush: %v, want %v", err, context.Canceled)
			}
		})
	}
	cancel()
	wg.Wait()
	for range 200 {
		if err := e.Flush(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Flush: %v, want %v", err, context.Canceled)
		}
	}
	if n := runtime.NumGoroutine(); n > before+20 {
		t.Errorf("%d goroutines before the calls, %d after them", before, n)
	}
	fs.full.Store(false)
	if err := <-flushed; err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// Close waits for readers: an open iterator finds nothing more.
func TestCloseUnderReaders(t *testing.T) {
	e := open1(t, "db", Options{FS: vfs.NewMem()})
	fill(t, e, 500)
	if err := e.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	snap := e.NewSnapshot()
	var its []engine.Iterator
	for _, r := range []engine.Reader{e, snap} {
		it, err := r.NewIter(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		its = append(its, it)
	}
	if !its[0].First() || !its[0].Next() { // the other one has not opened a file yet
		t.Fatalf("nothing to read: %v", its[0].Error())
	}
	closed := make(chan error, 1)
	go func() { closed <- e.Close() }()
	for {
		it, err := e.NewIter(nil, nil)
		if errors.Is(err, engine.ErrClosed) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		it.Close()
	}
	if its[0].Next() || its[1].First() {
		t.Error("an iterator goes on while the engine is being closed")
	}
	if _, err := snap.Get(nil, []byte("a")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Get of a snapshot: %v, want ErrClosed", err)
	}
	for i, it := range its {
		if err := it.Error(); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("iterator %d: %v, want ErrClosed", i, err)
		}
		if err := errors.Join(it.Close(), it.Close()); err != nil {
			t.Errorf("close iterator %d: %v", i, err)
		}
	}
	select {
	case err := <-closed:
		t.Errorf("Close: %v, while a snapshot is open", err)
	default:
	}
	if err := snap.Close(); err != nil {
		t.Errorf("close the snapshot: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
}

// A failing write to the manifest stops the engine: it is reported as fatal, and no
// caller waits forever.
func TestFatal(t *testing.T) {
	fs := &badSyncFS{FS: vfs.NewMem()}
	fatal := make(chan error, 10)
	e := open1(t, "db", Options{FS: fs, OnBackgroundError: func(err error) {
		if errors.Is(err, ErrFatal) {
			fatal <- err
		}
	}})
	fill(t, e, 10)
	fs.bad.Store(true)
	if err := e.Flush(context.Background()); !errors.Is(err, ErrFatal) {
		t.Errorf("Flush: %v, want ErrFatal", err)
	}
	if err := <-fatal; !strings.Contains(err.Error(), "MANIFEST") {
		t.Errorf("reported %v", err)
	}
	if err := e.Close(); !errors.Is(err, ErrFatal) {
		t.Errorf("Close: %v, want ErrFatal", err)
	}
}

// badSyncFS fails to sync manifests.
type badSyncFS struct {
	vfs.FS
	bad atomic.Bool
}

func (f *badSyncFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err == nil && strings.Contains(name, "MANIFEST") {
		file = &badSyncFile{file, f}
	}
	return file, err
}

type badSyncFile struct {
	vfs.File
	fs *badSyncFS
}

func (f *badSyncFile) Sync() error {
	if f.fs.bad.Load() {
		return syscall.EIO
	}
	return f.File.Sync()
}

func (f *badSyncFile) SyncData() error { return f.Sync() }

// Whichever byte of the manifest is damaged, Open either reports it or, if it is in the
// last record, returns to the state before that record.
func TestManifestDamage(t *testing.T) {
	fs := vfs.NewMem()
	e := open1(t, "db", Options{FS: fs})
	for range 3 {
		fill(t, e, 10)
		if err := e.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	b, last := manifest(t, fs, "db")
	for i := range b {
		bad := append([]byte(nil), b...)
		bad[i] ^= 0x10
		if _, err := checkRecords(bad); (err == nil) != (i >= last) {
			t.Errorf("byte %d of %d flipped, last record at %d: %v", i, len(b), last, err)
		}
	}
	for n := last; n <= len(b); n++ {
		if off, err := checkRecords(b[:n]); err != nil {
			t.Errorf("torn at %d of %d: damage at %d: %v", n, len(b), off, err)
		}
	}
}

// manifest returns the manifest of an engine and the offset of its last record.
func manifest(t *testing.T, fs vfs.FS, dir string) (b []byte, last int) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "MANIFEST-") {
			f, err := fs.Open(fs.PathJoin(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if b, err = io.ReadAll(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	for pos := 0; pos < len(b); {
		n, _ := chunk(b, pos)
		if n == 0 {
			t.Fatalf("no chunk at %d of %d", pos, len(b))
		}
		last, pos = pos, pos+n
	}
	return b, last
}

func FuzzCheckRecords(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0xc0, 0xba, 0x1e, 0x8a, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add(make([]byte, chunkBlock+20))
	f.Fuzz(func(t *testing.T, b []byte) {
		if off, err := checkRecords(b); err != nil && (off < 0 || off >= len(b)) {
			t.Errorf("damage at %d of %d", off, len(b))
		}
	})
}
