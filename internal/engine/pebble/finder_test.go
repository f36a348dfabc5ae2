package pebble

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/engine"
)

func recordKey(i int) []byte {
	return binary.BigEndian.AppendUint64([]byte{byte(engine.Key)}, uint64(i))
}

func recordValue(i int) []byte {
	r := rand.New(rand.NewSource(int64(i)))
	return bytes.Repeat([]byte{byte(i), byte(i >> 8), byte(r.Int())}, 1+r.Intn(200)) // compresses
}

// putRecords writes records [from, to) in batches, with keys of other buckets as a member
// writes them.
func putRecords(t *testing.T, e engine.Engine, from, to int) {
	t.Helper()
	for i := from; i < to; {
		b := e.NewBatch()
		for end := min(to, i+10); i < end; i++ {
			b.Set(recordKey(i), recordValue(i))
			b.Set(engine.Lease.K(recordKey(i)), []byte("lease"))
		}
		b.Set(engine.Meta.K([]byte("consistent_index")), recordKey(i))
		if i%1000 == 0 {
			b.Set(engine.Auth.K([]byte("auth")), recordKey(i))
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

func flushed(t *testing.T, e engine.Engine) {
	t.Helper()
	if err := e.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// found counts the keys that a finder finds among those of list, which ascends, and checks
// their values.
func found(t *testing.T, e engine.Engine, list []int) (n int) {
	t.Helper()
	f := e.(engine.Direct).NewFinder(false)
	if f == nil {
		return 0
	}
	defer f.Close()
	for _, i := range list {
		v, ok := f.Find(recordKey(i))
		if ok && !bytes.Equal(v, recordValue(i)) {
			t.Fatalf("record %d: %d bytes, want %d", i, len(v), len(recordValue(i)))
		}
		if ok {
			n++
		}
	}
	return n
}

func every(from, to, step int) (list []int) {
	for i := from; i < to; i += step {
		list = append(list, i)
	}
	return list
}

// What has been flushed is found, in any number of files, before and after compactions, and
// what is only in memory is not.
func TestFinder(t *testing.T) {
	fs := &countingFS{FS: vfs.NewMem()}
	e := open1(t, "db", Options{FS: fs, CacheBytes: 1 << 10, MemTableBytes: 256 << 10})
	if n := found(t, e, every(0, 10, 1)); n != 0 {
		t.Errorf("%d records found in an empty engine", n)
	}
	const n = 20_000
	check := func(when string, from, to int) {
		t.Helper()
		for _, step := range []int{1, 2, 7, 1000} {
			list := every(from, to, step)
			got := found(t, e, list)
			for tries := 0; got != len(list) && tries < 100; tries++ { // a compaction has replaced files meanwhile
				got = found(t, e, list)
			}
			if got != len(list) {
				t.Errorf("%s: %d of %d records found, every %d", when, got, len(list), step)
			}
		}
	}
	for part := range 4 {
		putRecords(t, e, part*n/4, (part+1)*n/4)
		flushed(t, e)
		check("after a flush", 0, (part+1)*n/4)
	}
	putRecords(t, e, n, n+10)
	if got := found(t, e, every(0, n+10, 1)); got != n {
		t.Errorf("%d records found of %d in files and 10 in memory", got, n)
	}
	// Half of the records go, some of each file.
	b := e.NewBatch()
	for i := 0; i < n; i += 2 {
		b.Delete(recordKey(i))
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	flushed(t, e)
	if err := e.Compact(context.Background()); err != nil {
		t.Fatal(err)
	}
	list := every(1, n, 2)
	if got := found(t, e, list); got != len(list) {
		t.Errorf("after a compaction: %d of %d records found", got, len(list))
	}
	if got := found(t, e, every(0, n, 2)); got != 0 {
		t.Errorf("%d deleted records found", got)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if open := fs.open.Load(); open != 0 {
		t.Errorf("%d files are open after Close", open)
	}
}

// New tables hold either records or other keys. In tables of earlier releases, which hold
// both, a finder finds the records of those that begin with one.
func TestTablesOfEarlierReleases(t *testing.T) {
	fs := vfs.NewMem()
	old, err := pebble.Open("db", &pebble.Options{FS: fs, DisableWAL: true, FormatMajorVersion: format, DisableAutomaticCompactions: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		b := old.NewBatch()
		b.Set(recordKey(i), recordValue(i), nil)
		b.Set(engine.Meta.K([]byte("consistent_index")), recordKey(i), nil)
		if i/1000 == 1 {
			b.Set(engine.Auth.K([]byte("auth")), recordKey(i), nil)
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 999 {
			if err := old.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	e := open1(t, "db", Options{FS: fs, CacheBytes: 1 << 10})
	defer e.Close()
	if n := found(t, e, every(0, 3000, 1)); n != 2000 && n != 3000 { // a compaction may have begun
		t.Errorf("%d of 3000 records found", n)
	}
	putRecords(t, e, 3000, 9000)
	flushed(t, e)
	if err := e.Compact(context.Background()); err != nil {
		t.Fatal(err)
	}
	levels, err := e.(*store).db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	sides := map[bool]int{}
	for _, level := range levels {
		for _, i := range level {
			small, large := i.Smallest.UserKey[0] == byte(engine.Key), i.Largest.UserKey[0] == byte(engine.Key)
			if sides[small]++; small != large {
				t.Errorf("a table reaches from %x to %x", i.Smallest.UserKey, i.Largest.UserKey)
			}
		}
	}
	if sides[true] == 0 || sides[false] == 0 {
		t.Errorf("tables with and without records: %v", sides)
	}
	if n := found(t, e, every(0, 9000, 1)); n != 9000 {
		t.Errorf("%d of 9000 records found after a compaction", n)
	}
}

// countingFS counts the files that are open.
type countingFS struct {
	vfs.FS
	open atomic.Int64
}

type countedFile struct {
	vfs.File
	fs *countingFS
}

func (f *countedFile) Close() error {
	f.fs.open.Add(-1)
	return f.File.Close()
}

func (c *countingFS) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.Open(name, o...)
	if err != nil {
		return nil, err
	}
	c.open.Add(1)
	return &countedFile{f, c}, nil
}

// A file with flipped bits gives nothing: whoever asks the engine instead is told.
func TestFinderOfDamagedFile(t *testing.T) {
	dir := t.TempDir()
	e := open1(t, dir, Options{CacheBytes: 1 << 10})
	putRecords(t, e, 0, 2000)
	flushed(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(b)*9/10; i += 50 {
			b[i] ^= 0x10
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e = open1(t, dir, Options{CacheBytes: 1 << 10, ReadOnly: true})
	defer e.Close()
	if n := found(t, e, every(0, 2000, 1)); n > 500 {
		t.Errorf("%d records found in a file that is damaged almost everywhere", n)
	}
}

// Finders beside flushes, compactions that delete their files, and the end of the engine.
func TestFinderBesideWrites(t *testing.T) {
	e := open1(t, "db", Options{FS: vfs.NewMem(), CacheBytes: 1 << 10, MemTableBytes: 128 << 10})
	putRecords(t, e, 0, 1000)
	flushed(t, e)
	var wg sync.WaitGroup
	var seen atomic.Int64
	done := make(chan struct{})
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				seen.Add(int64(found(t, e, every(0, 1000, 1+rand.Intn(20)))))
				select {
				case <-done:
					return
				default:
				}
			}
		}()
	}
	for i := 1; i < 10; i++ {
		putRecords(t, e, i*1000, (i+1)*1000)
		flushed(t, e)
		if err := e.Compact(context.Background()); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	if seen.Load() == 0 {
		t.Error("nothing was found")
	}
	f := e.(engine.Direct).NewFinder(false)
	if f == nil {
		t.Fatal("no finder")
	}
	closed := make(chan error)
	go func() { closed <- e.Close() }()
	for { // the engine waits for the finder, which finds nothing any more
		if _, ok := f.Find(recordKey(1)); !ok {
			break
		}
	}
	f.Close()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if f := e.(engine.Direct).NewFinder(false); f != nil {
		t.Error("a closed engine gives a finder")
	}
}

// Records that fit into most of the cache, and not into half of it, are read through it if
// they are scattered.
func TestFinderBesideCache(t *testing.T) {
	fs := vfs.NewMem()
	e := open1(t, "db", Options{FS: fs, CacheBytes: 1 << 10})
	putRecords(t, e, 0, 5000)
	flushed(t, e)
	if n := found(t, e, every(0, 10, 1)); n != 10 {
		t.Fatalf("%d of 10 records found", n)
	}
	size := e.(*store).direct.size
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open1(t, "db", Options{FS: fs, CacheBytes: size * 3 / 2})
	defer e.Close()
	for _, scattered := range []bool{false, true} {
		f := e.(engine.Direct).NewFinder(scattered)
		if (f == nil) != scattered {
			t.Errorf("scattered %v: finder %v", scattered, f)
		}
		if f != nil {
			f.Close()
		}
	}
}
