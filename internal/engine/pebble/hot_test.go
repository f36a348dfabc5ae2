package pebble

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/engine"
)

// readsFS counts the reads of tables.
type readsFS struct {
	vfs.FS
	reads atomic.Int64
}

type readsFile struct {
	vfs.File
	fs *readsFS
}

func (f *readsFS) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.Open(name, o...)
	if err != nil {
		return nil, err
	}
	return &readsFile{file, f}, nil
}

func (f *readsFile) ReadAt(b []byte, at int64) (int, error) {
	f.fs.reads.Add(1)
	return f.File.ReadAt(b, at)
}

// Records that are read again and again come from memory; records of a pass over everything are
// read from the files each time, and remove none of the former.
func TestHotBlocks(t *testing.T) {
	fs := &readsFS{FS: vfs.NewMem()}
	e := open1(t, "db", Options{FS: fs, CacheBytes: 1 << 10, MemTableBytes: 4 << 20})
	const n = 90_000 // of 300 bytes: 3,400 blocks
	putRecords(t, e, 0, n)
	flushed(t, e)
	if err := e.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	reads := func(list []int) int64 {
		t.Helper()
		before := fs.reads.Load()
		if got := found(t, e, list); got != len(list) {
			t.Fatalf("%d of %d records found", got, len(list))
		}
		return fs.reads.Load() - before
	}
	page, all := every(50_000, 55_000, 1), every(0, n, 1)
	first := reads(page)
	for range 4 {
		reads(page)
	}
	if again := reads(page); again*10 > first {
		t.Errorf("a page takes %d reads the first time, and %d after some times", first, again)
	}
	whole := reads(all)
	if again := reads(all); whole < 10*first/2 || again*10 < whole*9 {
		t.Errorf("everything takes %d reads the first time and %d the second, a page %d", whole, again, first)
	}
	if again := reads(page); again*5 > first {
		t.Errorf("after everything, a page takes %d reads, %d the first time", again, first)
	}
	// A compaction replaces the tables.
	b := e.NewBatch()
	for i := 0; i < n; i += 2 {
		b.Delete(recordKey(i))
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	flushed(t, e)
	if err := e.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := every(50_001, 55_000, 2)
	for range 3 {
		if got := found(t, e, left); got != len(left) {
			t.Errorf("%d of %d records found after a compaction", got, len(left))
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is kept is bounded, and no large block is kept.
func TestHotBlocksAreBounded(t *testing.T) {
	var h hotBlocks
	h.read(1, 1, make([]byte, maxHot+1))
	h.read(1, 1, make([]byte, maxHot+1))
	if h.get(1, 1) != nil {
		t.Error("a large block is kept")
	}
	data := blockOf(t)
	const blocks = 20_000
	for blk := range blocks {
		h.read(7, blk, data)
		h.read(7, blk, data)
		if blk%3 == 0 {
			h.get(7, blk)
		}
	}
	kept := 0
	for blk := range blocks {
		if b := h.get(7, blk); b != nil {
			if kept++; b.table != 7 || b.blk != blk {
				t.Errorf("block %d of table %d instead of block %d of table 7", b.blk, b.table, blk)
			}
		}
		if h.get(8, blk) != nil {
			t.Error("a block of another table")
		}
	}
	if kept < hotSets*hotWays/2 || kept > hotSets*hotWays {
		t.Errorf("%d blocks are kept, at most %d", kept, hotSets*hotWays)
	}
}

// blockOf returns the bytes of a block.
func blockOf(t *testing.T) (data []byte) {
	t.Helper()
	e := open1(t, "db", Options{FS: vfs.NewMem(), CacheBytes: 1 << 10})
	putRecords(t, e, 0, 100)
	flushed(t, e)
	f := e.(engine.Direct).NewFinder(false).(*finder)
	if _, ok := f.Find(recordKey(5)); !ok {
		t.Fatal("not found")
	}
	data = slices.Clone(f.rows.it.Handle().BlockData())
	f.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return data
}

// Finders that read the same blocks at once each find their records.
func TestHotBlocksConcurrently(t *testing.T) {
	e := open1(t, "db", Options{FS: vfs.NewMem(), CacheBytes: 1 << 10, MemTableBytes: 1 << 20})
	const n = 20_000
	putRecords(t, e, 0, n)
	flushed(t, e)
	if err := e.Compact(t.Context()); err != nil { // none comes meanwhile
		t.Fatal(err)
	}
	if got := found(t, e, every(0, n, 1)); got != n { // knows the tables now
		t.Fatalf("%d of %d records found", got, n)
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for range 5 {
				list := every(i*10, n, 3)
				if got := found(t, e, list); got != len(list) {
					t.Errorf("%d of %d records found", got, len(list))
				}
			}
		})
	}
	all.Wait()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
