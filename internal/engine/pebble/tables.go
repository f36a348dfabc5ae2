package pebble

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/sstable/block/blockkind"
	"github.com/cockroachdb/pebble/v2/sstable/colblk"

	"quorate/internal/descriptors"
	"quorate/internal/engine"
)

// tableFiles knows the files that finders read. Its list may be older than the state of the
// engine: a finder then misses keys, and its caller asks an iterator.
type tableFiles struct {
	s *store

	hot     hotBlocks
	fresh   atomic.Bool // no files have been added since list was made
	refresh sync.Mutex  // held by the one that makes a new list

	mu      sync.Mutex   // guards the following fields
	list    []*tableFile // by low; replaced, never changed
	size    int64        // of all files together
	closed  bool
	opened  int
	clock   uint64 // counts uses
	finders []*finder
	given   int // finders in use
}

// tableFile is a file that has records.
type tableFile struct {
	num       uint64
	low, high []byte // bounds of its keys; the high one may belong to a later bucket

	// Guarded by tableFiles.mu.
	gone bool // the engine has replaced it
	used uint64
	open *openTable
}

// openTable is an open file, and where its blocks are.
type openTable struct {
	refs  int           // users, and one while tableFile.open refers to it; guarded by tableFiles.mu
	num   uint64        // of the file
	ready chan struct{} // closed when the following fields are set
	err   error
	r     *sstable.Reader
	last  []byte // no record is greater
	// Block i ends before keys greater than ends[upTo[i-1]:upTo[i]].
	ends []byte
	upTo []uint32
	at   []extent
}

// extent is the position of a block in a file.
type extent struct{ offset, length uint32 }

func (o *openTable) end(i int) []byte {
	from := uint32(0)
	if i > 0 {
		from = o.upTo[i-1]
	}
	return o.ends[from:o.upTo[i]]
}

// blockOf returns the block that key is in if the table has it, of those from the given
// one on.
func (o *openTable) blockOf(key []byte, from int) (int, bool) {
	if from < len(o.at) && bytes.Compare(key, o.end(from)) <= 0 {
		return from, true // usual in a scan
	}
	i := from + sort.Search(len(o.at)-from, func(i int) bool { return bytes.Compare(key, o.end(from+i)) <= 0 })
	return i, i < len(o.at)
}

// current returns the list, made anew if files have been added. The engine must be in
// use.
func (t *tableFiles) current() []*tableFile {
	if !t.fresh.Load() && t.refresh.TryLock() {
		defer t.refresh.Unlock()
		t.fresh.Store(true)
		lower, upper := engine.Key.Bounds()
		if levels, err := t.s.db.SSTables(pebble.WithKeyRangeFilter(lower, upper)); err == nil {
			t.replace(levels)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.list
}

// replace makes the list of the files in levels.
func (t *tableFiles) replace(levels [][]pebble.SSTableInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	lower, _ := engine.Key.Bounds()
	known := make(map[uint64]*tableFile, len(t.list))
	for _, x := range t.list {
		known[x.num] = x
	}
	var list []*tableFile
	t.size = 0
	for _, level := range levels {
		for _, i := range level {
			if i.Virtual || i.BackingType != pebble.BackingTypeLocal || bytes.Compare(i.Smallest.UserKey, lower) < 0 {
				continue // where its records begin is not known; written by an earlier release
			}
			t.size += int64(i.Size)
			num := uint64(i.BackingSSTNum)
			x := known[num]
			if x != nil && x.open.failed() {
				t.shut(x) // the next user tries again
			}
			if x == nil || x.gone {
				x = &tableFile{num: num, low: i.Smallest.UserKey, high: i.Largest.UserKey}
			}
			delete(known, num)
			list = append(list, x)
		}
	}
	for _, x := range known {
		t.drop(x)
	}
	slices.SortFunc(list, func(a, b *tableFile) int {
		if c := bytes.Compare(a.low, b.low); c != 0 {
			return c
		}
		return cmp.Compare(a.num, b.num)
	})
	t.list = list
}

// deleted closes a file that the engine has deleted, so that its space becomes free.
func (t *tableFiles) deleted(num uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.list {
		if x.num == num {
			t.drop(x)
		}
	}
}

// drop makes a table unusable. t.mu must be held.
func (t *tableFiles) drop(x *tableFile) {
	x.gone = true
	t.shut(x)
}

// shut closes the file of a table when its last user is done. t.mu must be held.
func (t *tableFiles) shut(x *tableFile) {
	if o := x.open; o != nil {
		x.open = nil
		t.opened--
		t.unref(o)
	}
}

// unref drops a use of a file. t.mu must be held.
func (t *tableFiles) unref(o *openTable) {
	if o.refs--; o.refs == 0 && o.r != nil {
		o.r.Close() // it was only read
	}
}

// acquire returns the open file of a table, nil if it cannot be read.
func (t *tableFiles) acquire(x *tableFile) *openTable {
	t.mu.Lock()
	if x.gone || t.closed {
		t.mu.Unlock()
		return nil
	}
	t.clock++
	x.used = t.clock
	o := x.open
	if o == nil {
		if t.opened >= t.s.o.Files.Direct {
			t.evict()
		}
		o = &openTable{refs: 1, num: x.num, ready: make(chan struct{})}
		x.open = o
		t.opened++
		o.refs++
		t.mu.Unlock()
		if o.err = o.load(t.s, x); descriptors.Exhausted(o.err) {
			t.forget(x, o)
		}
		close(o.ready)
	} else {
		o.refs++
		t.mu.Unlock()
		<-o.ready
	}
	if o.err != nil {
		t.release(o)
		return nil
	}
	return o
}

func (t *tableFiles) release(o *openTable) {
	t.mu.Lock()
	t.unref(o)
	t.mu.Unlock()
}

// evict closes the least recently used file. t.mu must be held.
func (t *tableFiles) evict() {
	var oldest *tableFile
	for _, x := range t.list {
		if x.open != nil && (oldest == nil || x.used < oldest.used) {
			oldest = x
		}
	}
	if oldest != nil {
		t.shut(oldest)
	}
}

// close closes all files. No finder may be in use.
func (t *tableFiles) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, x := range t.list {
		t.drop(x)
	}
	t.list = nil
	for _, f := range t.finders {
		f.rows.release()
	}
	t.finders = nil
}

// forget makes the next user of a table try again.
func (t *tableFiles) forget(x *tableFile, o *openTable) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x.open == o {
		t.shut(x)
	}
}

// failed reports whether a file could not be opened.
func (o *openTable) failed() bool {
	if o == nil {
		return false
	}
	select {
	case <-o.ready:
		return o.err != nil
	default:
		return false
	}
}

// load opens a file and reads where its blocks are. Without a descriptor it does not wait:
// the caller reads with an iterator, whose file may be open already.
func (o *openTable) load(s *store, x *tableFile) (err error) {
	f, err := s.disk.FS.Open(s.o.FS.PathJoin(s.dir, fmt.Sprintf("%06d.sst", x.num)))
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(runtime.Error); !ok {
				panic(r)
			}
			f.Close()                  // the next list tries again, and must find a descriptor
			err = pebble.ErrCorruption // as in open
		}
	}()
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		f.Close()
		return err
	}
	r, err := sstable.NewReader(context.Background(), readable, sstable.ReaderOptions{Comparer: pebble.DefaultComparer})
	if err != nil {
		f.Close()
		return err
	}
	if err = o.locate(r); err == nil {
		err = o.limit(r, x)
	}
	if err != nil {
		r.Close()
		return err
	}
	o.r = r
	return nil
}

// limit determines the last record of a table.
func (o *openTable) limit(r *sstable.Reader, x *tableFile) error {
	_, upper := engine.Key.Bounds()
	if bytes.Compare(x.high, upper) < 0 {
		o.last = x.high
		return nil
	}
	i, ok := o.blockOf(upper, 0)
	if !ok { // x.high ends a range of deletions
		if len(o.at) > 0 {
			o.last = o.end(len(o.at) - 1)
		}
		return nil
	}
	var b rows
	b.init()
	defer b.release()
	if err := b.enter(r, o.at[i]); err != nil {
		return err
	}
	if kv := b.it.SeekLT(upper, 0); kv != nil {
		o.last = bytes.Clone(kv.K.UserKey)
	} else if i > 0 {
		o.last = o.end(i - 1)
	}
	return nil
}

// locate reads the index of a table.
func (o *openTable) locate(r *sstable.Reader) error {
	format, err := r.TableFormat()
	if err != nil {
		return err
	}
	if !format.BlockColumnar() || r.Attributes.Intersects(sstable.AttributeValueBlocks|sstable.AttributeBlobValues) {
		return fmt.Errorf("pebble: no direct reads of format %v with %v", format, r.Attributes)
	}
	layout, err := r.Layout()
	if err != nil {
		return err
	}
	var pool block.BufferPool
	pool.Init(2)
	defer pool.Release()
	var it colblk.IndexIter
	defer it.Close()
	o.at, o.upTo = make([]extent, 0, len(layout.Data)), make([]uint32, 0, len(layout.Data))
	for _, at := range layout.Index {
		h, err := r.BlockReader().Read(context.Background(), block.ReadEnv{BufferPool: &pool}, nil, at, blockkind.Index, colblk.InitIndexBlockMetadata)
		if err != nil {
			return err
		}
		if err := it.InitHandle(pebble.DefaultComparer, h, block.NoTransforms); err != nil {
			return err
		}
		for ok := it.First(); ok; ok = it.Next() {
			b, err := it.BlockHandleWithProperties()
			if err != nil {
				return err
			}
			o.ends = append(o.ends, it.Separator()...)
			if b.Offset+b.Length > math.MaxUint32 || len(o.ends) > math.MaxUint32 {
				return fmt.Errorf("pebble: no direct reads of a table of more than 4 GiB")
			}
			o.upTo = append(o.upTo, uint32(len(o.ends)))
			o.at = append(o.at, extent{uint32(b.Offset), uint32(b.Length)})
		}
	}
	o.ends = bytes.Clone(o.ends)
	return nil
}
