package pebble

import (
	"bytes"
	"context"
	"sort"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/sstable/block/blockkind"
	"github.com/cockroachdb/pebble/v2/sstable/colblk"

	"quorate/internal/engine"
)

const (
	// maxFinders is the number of finders at a time. Each has room for two or three
	// blocks.
	maxFinders = 64
	// keptFinders is the number of finders that are kept with their memory.
	keptFinders = 4
	// Records that take no more than so many eighths of the cache, which the memtables
	// share, are read through it: there most of them stay. For few records of many blocks
	// that matters more.
	cachedEighths, cachedScattered = 4, 7
	// overlapping is how many tables are searched for a key. Records are written in
	// order of their keys, so the first one, which begins last, usually has it.
	overlapping = 3
)

var keySchema = colblk.DefaultKeySchema(pebble.DefaultComparer, 16)

// rows is a cursor over the rows of one block at a time, whose memory it reuses.
type rows struct {
	it   colblk.DataBlockIter
	pool block.BufferPool
}

func (b *rows) init() {
	b.pool.Init(3)
	b.it.InitOnce(&keySchema, pebble.DefaultComparer, nil) // tables with values elsewhere are not read
}

// enter reads a block, and verifies its checksum.
func (b *rows) enter(r *sstable.Reader, at extent) error {
	h, err := r.BlockReader().Read(context.Background(), block.ReadEnv{BufferPool: &b.pool}, nil,
		block.Handle{Offset: uint64(at.offset), Length: uint64(at.length)}, blockkind.SSTableData, initRows)
	if err != nil {
		return err
	}
	return b.it.InitHandle(pebble.DefaultComparer, h, block.NoTransforms)
}

func initRows(m *block.Metadata, data []byte) error {
	return colblk.InitDataBlockMetadata(&keySchema, m, data)
}

func (b *rows) leave() { b.it.Close() }

func (b *rows) release() {
	b.leave()
	b.pool.Release()
}

// finder implements engine.Finder. It holds one table and one block at a time.
//
// What it saves, compared with an iterator of Pebble: the memory of a block is reused
// for the next one, instead of being allocated, put into the cache and collected; the
// cache keeps the blocks that single reads need; and no levels are merged.
type finder struct {
	s    *store
	list []*tableFile
	tab  *openTable // nil at first
	blk  int        // block of tab that rows is in
	in   bool       // rows is in a block
	past bool       // the remaining keys are in no table
	rows rows
}

// NewFinder implements engine.Direct.
func (s *store) NewFinder(scattered bool) engine.Finder {
	cached := s.o.CacheBytes / 8 * cachedEighths
	if scattered {
		cached = s.o.CacheBytes / 8 * cachedScattered
	}
	if !s.use() {
		return nil
	}
	t := &s.direct
	list := t.current()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(list) == 0 || t.size <= cached || t.given == maxFinders || t.closed {
		defer s.done()
		return nil
	}
	t.given++
	var f *finder
	if n := len(t.finders); n > 0 {
		f, t.finders = t.finders[n-1], t.finders[:n-1]
	} else {
		f = &finder{s: s}
		f.rows.init()
	}
	f.list, f.past = list, false
	return f
}

// Close implements engine.Finder.
func (f *finder) Close() {
	f.leave()
	f.list = nil
	t := &f.s.direct
	t.mu.Lock()
	t.given--
	kept := len(t.finders) < keptFinders && !t.closed
	if kept {
		t.finders = append(t.finders, f)
	}
	t.mu.Unlock()
	if !kept {
		f.rows.release()
	}
	f.s.done()
}

// leave leaves the current table.
func (f *finder) leave() {
	f.in = false
	f.rows.leave()
	if f.tab != nil {
		f.s.direct.release(f.tab)
		f.tab = nil
	}
}

// Find implements engine.Finder.
func (f *finder) Find(key []byte) ([]byte, bool) {
	if f.past || f.s.closed.Load() {
		return nil, false
	}
	if f.in { // mostly, what follows is next to what was found
		if kv := f.rows.it.Next(); kv != nil && bytes.Equal(kv.K.UserKey, key) {
			return kv.InPlaceValue(), kv.Kind() == pebble.InternalKeyKindSet
		}
	}
	if f.tab != nil && bytes.Compare(key, f.tab.last) <= 0 {
		if v, ok := f.inTable(key); ok {
			return v, true
		}
	}
	i := sort.Search(len(f.list), func(i int) bool { return bytes.Compare(f.list[i].low, key) > 0 }) - 1
	for tries := 0; i >= 0 && tries < overlapping; i, tries = i-1, tries+1 {
		if t := f.list[i]; bytes.Compare(key, t.high) <= 0 {
			if v, ok := f.search(t, key); ok {
				return v, true
			}
		}
	}
	return nil, false
}

// search finds key in a table other than the current one, which that table becomes.
func (f *finder) search(t *tableFile, key []byte) ([]byte, bool) {
	o := f.s.direct.acquire(t)
	if o == nil {
		return nil, false
	}
	if o == f.tab || bytes.Compare(key, o.last) > 0 {
		f.past = f.past || o != f.tab && t == f.list[len(f.list)-1]
		f.s.direct.release(o)
		return nil, false
	}
	f.leave()
	f.tab, f.blk = o, 0
	return f.inTable(key)
}

// inTable finds key in the current table, at or after the current block.
func (f *finder) inTable(key []byte) ([]byte, bool) {
	i, ok := f.tab.blockOf(key, f.blk)
	if !ok {
		return nil, false
	}
	if !f.in || i != f.blk {
		f.in = f.enter(i) == nil
		if f.blk = i; !f.in {
			return nil, false
		}
	}
	kv := f.rows.it.SeekGE(key, 0)
	if kv == nil || !bytes.Equal(kv.K.UserKey, key) || kv.Kind() != pebble.InternalKeyKindSet {
		return nil, false
	}
	return kv.InPlaceValue(), true
}

// enter enters a block of the current table.
func (f *finder) enter(i int) error {
	hot := &f.s.direct.hot
	if b := hot.get(f.tab.num, i); b != nil {
		return f.rows.show(b)
	}
	if err := f.rows.enter(f.tab.r, f.tab.at[i]); err != nil {
		return err
	}
	hot.read(f.tab.num, i, f.rows.it.Handle().BlockData())
	return nil
}
