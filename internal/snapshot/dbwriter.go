package snapshot

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// Layout of bbolt's pages. All numbers are little endian.
const (
	pageHeaderBytes = 16 // id u64, flags u16, count u16, overflow u32
	elementBytes    = 16
	metaBytes       = 64

	flagBranch = 0x01
	flagLeaf   = 0x02
	flagMeta   = 0x04

	elementBucket = 0x01 // leaf element: the value is a bucket header

	dbMagic      = 0xED0CDAED
	dbVersion    = 2
	noFreelist   = math.MaxUint64
	bucketHeader = 16 // root page u64, sequence u64
)

var (
	errKeyOrder = errors.New("keys out of order")
	errKeySize  = errors.New("key is empty or too long")
	errPageSize = errors.New("page size is not a power of two from 1024 to 65536")
)

// maxKeyBytes is bbolt's limit.
const maxKeyBytes = 32768

// dbWriter writes a bbolt database front to back: the two meta pages, then the pages
// of each bucket's tree, each as soon as it is full. bbolt itself would need random
// writes and, for a large store, many transactions; written in order, every page is
// full and is written once. The meta pages contain the root and the number of pages,
// which are known only at the end: so a database is first measured, by a writer
// without an output, and then written.
type dbWriter struct {
	w        *bufio.Writer // nil: the database is only measured
	pageSize int
	next     uint64 // id of the next page
	root     *treeWriter
	page     []byte // the page being built
}

// extent is the part of a database's meta pages that depends on its content.
type extent struct{ root, pages uint64 }

// measureDB starts measuring a database.
func measureDB(pageSize int) (*dbWriter, error) {
	if pageSize < 1024 || pageSize > 65536 || pageSize&(pageSize-1) != 0 {
		return nil, errPageSize
	}
	w := &dbWriter{pageSize: pageSize, next: 2}
	w.root = w.tree()
	return w, nil
}

// writeDB starts writing a database that was measured.
func writeDB(out io.Writer, pageSize int, x extent) (*dbWriter, error) {
	w, err := measureDB(pageSize)
	if err != nil {
		return nil, err
	}
	w.w = bufio.NewWriterSize(out, 256<<10)
	// The meta page with the greater transaction id is the current one; both describe the
	// same tree.
	for i, txid := range []uint64{2, 1} {
		page := make([]byte, pageSize)
		binary.LittleEndian.PutUint64(page, uint64(i))
		binary.LittleEndian.PutUint16(page[8:], flagMeta)
		putMeta(page[pageHeaderBytes:], uint32(pageSize), x.root, x.pages, txid)
		if _, err := w.w.Write(page); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// tree starts the tree of a bucket.
func (w *dbWriter) tree() *treeWriter { return &treeWriter{w: w} }

// bucket adds a finished tree under its name. Names must ascend. Root 0 is an empty
// bucket, which bbolt stores inline in the parent's page.
func (w *dbWriter) bucket(name string, root uint64) error {
	value := make([]byte, bucketHeader, bucketHeader+pageHeaderBytes)
	binary.LittleEndian.PutUint64(value, root)
	if root == 0 {
		value = value[:bucketHeader+pageHeaderBytes]
		binary.LittleEndian.PutUint16(value[bucketHeader+8:], flagLeaf)
	}
	return w.root.add([]byte(name), value, elementBucket)
}

// finish completes the database.
func (w *dbWriter) finish() (x extent, err error) {
	if x.root, err = w.root.finish(); err != nil {
		return extent{}, err
	}
	x.pages = w.next
	if w.w != nil {
		err = w.w.Flush()
	}
	return x, err
}

func putMeta(b []byte, pageSize uint32, root, pages, txid uint64) {
	le := binary.LittleEndian
	le.PutUint32(b, dbMagic)
	le.PutUint32(b[4:], dbVersion)
	le.PutUint32(b[8:], pageSize)
	le.PutUint64(b[16:], root)
	le.PutUint64(b[32:], noFreelist) // etcd does not store the free list in the file either
	le.PutUint64(b[40:], pages)
	le.PutUint64(b[48:], txid)
	le.PutUint64(b[56:], metaSum(b))
}

func metaSum(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b[:56])
	return h.Sum64()
}

// emit writes one page, with the overflow pages that it needs, and returns its id. put
// fills in the elements; data follows them, and skipped bytes count towards the size.
func (w *dbWriter) emit(flags uint16, count int, data []byte, skipped int, put func(i int, elem []byte, pos uint32)) (uint64, error) {
	elems := pageHeaderBytes + elementBytes*count
	pages := (elems + len(data) + skipped + w.pageSize - 1) / w.pageSize
	if w.w == nil {
		w.next += uint64(pages)
		return w.next - uint64(pages), nil
	}
	size := pages * w.pageSize
	if cap(w.page) < size {
		w.page = make([]byte, size)
	}
	page := w.page[:size]
	clear(page[:elems])
	id := w.next
	binary.LittleEndian.PutUint64(page, id)
	binary.LittleEndian.PutUint16(page[8:], flags)
	binary.LittleEndian.PutUint16(page[10:], uint16(count))
	binary.LittleEndian.PutUint32(page[12:], uint32(pages-1))
	for i := range count {
		at := pageHeaderBytes + elementBytes*i
		put(i, page[at:at+elementBytes], uint32(elems-at))
	}
	n := copy(page[elems:], data)
	clear(page[elems+n:])
	w.next += uint64(pages)
	if cap(w.page) > 1<<20 {
		w.page = nil // do not retain the memory of one large value until the end
	}
	_, err := w.w.Write(page)
	return id, err
}

// treeWriter builds the tree of one bucket from keys in ascending order. It holds one
// unfinished page per level.
type treeWriter struct {
	w      *dbWriter
	last   []byte // newest key
	leaf   pending
	levels []pending // branch pages, from the leaves up
}

// pending is a page that still accepts elements.
type pending struct {
	elems []element
	data  []byte // keys; in a leaf each is followed by its value
	full  int    // pages of this level that were written
	// skipped counts the bytes of values that are only measured and not in data.
	skipped int
}

type element struct {
	key, value int    // bytes
	flags      uint32 // leaf
	child      uint64 // branch
}

func (p *pending) size() int {
	return pageHeaderBytes + elementBytes*len(p.elems) + len(p.data) + p.skipped
}

func (p *pending) firstKey() []byte { return p.data[:p.elems[0].key] }

// take removes the first n elements.
func (p *pending) take(n int) {
	bytes := 0
	for _, e := range p.elems[:n] {
		bytes += e.key + e.value
	}
	p.elems = p.elems[:copy(p.elems, p.elems[n:])]
	p.data = p.data[:copy(p.data, p.data[bytes:])]
	p.full++
	p.skipped = 0
	if len(p.data) == 0 && cap(p.data) > 1<<20 {
		p.data = nil
	}
}

// maxPageElements is the largest value of a page's count field.
const maxPageElements = math.MaxUint16 - 1

func (t *treeWriter) add(key, value []byte, flags uint32) error {
	if len(key) == 0 || len(key) > maxKeyBytes {
		return fmt.Errorf("%w: %d bytes", errKeySize, len(key))
	}
	if t.last != nil && string(key) <= string(t.last) {
		return fmt.Errorf("%w: %q after %q", errKeyOrder, key, t.last)
	}
	t.last = append(t.last[:0], key...)
	p := &t.leaf
	if n := len(p.elems); n > 0 && (n == maxPageElements || p.size()+elementBytes+len(key)+len(value) > t.w.pageSize) {
		if err := t.flushLeaf(); err != nil {
			return err
		}
	}
	if t.w.w == nil {
		p.skipped += len(value)
		value = nil
	}
	p.elems = append(p.elems, element{key: len(key), value: len(value), flags: flags})
	p.data = append(append(p.data, key...), value...)
	return nil
}

func (t *treeWriter) flushLeaf() error {
	p := &t.leaf
	off := 0
	id, err := t.w.emit(flagLeaf, len(p.elems), p.data, p.skipped, func(i int, elem []byte, pos uint32) {
		e := p.elems[i]
		binary.LittleEndian.PutUint32(elem, e.flags)
		binary.LittleEndian.PutUint32(elem[4:], pos+uint32(off))
		binary.LittleEndian.PutUint32(elem[8:], uint32(e.key))
		binary.LittleEndian.PutUint32(elem[12:], uint32(e.value))
		off += e.key + e.value
	})
	if err != nil {
		return err
	}
	if err := t.child(0, p.firstKey(), id); err != nil {
		return err
	}
	p.take(len(p.elems))
	return nil
}

// child adds a page to the branch level above it.
func (t *treeWriter) child(level int, key []byte, id uint64) error {
	if level == len(t.levels) {
		t.levels = append(t.levels, pending{})
	}
	p := &t.levels[level]
	n := len(p.elems)
	if n == maxPageElements || n > 2 && p.size()+elementBytes+len(key) > t.w.pageSize {
		// One element stays for the next page, so that no page has a single child.
		if err := t.flushBranch(level, n-1); err != nil {
			return err
		}
		p = &t.levels[level]
	}
	p.elems = append(p.elems, element{key: len(key), child: id})
	p.data = append(p.data, key...)
	return nil
}

// flushBranch writes the first n elements of a level as a page.
func (t *treeWriter) flushBranch(level, n int) error {
	p := &t.levels[level]
	bytes := 0
	for _, e := range p.elems[:n] {
		bytes += e.key
	}
	off := 0
	id, err := t.w.emit(flagBranch, n, p.data[:bytes], 0, func(i int, elem []byte, pos uint32) {
		e := p.elems[i]
		binary.LittleEndian.PutUint32(elem, pos+uint32(off))
		binary.LittleEndian.PutUint32(elem[4:], uint32(e.key))
		binary.LittleEndian.PutUint64(elem[8:], e.child)
		off += e.key
	})
	if err != nil {
		return err
	}
	if err := t.child(level+1, p.firstKey(), id); err != nil {
		return err
	}
	t.levels[level].take(n) // child may have reallocated levels
	return nil
}

// finish writes the remaining pages and returns the page of the root, 0 if the tree is
// empty.
func (t *treeWriter) finish() (uint64, error) {
	if len(t.leaf.elems) > 0 {
		if err := t.flushLeaf(); err != nil {
			return 0, err
		}
	}
	for level := 0; level < len(t.levels); level++ {
		p := &t.levels[level]
		if p.full == 0 && len(p.elems) == 1 {
			return p.elems[0].child, nil
		}
		if err := t.flushBranch(level, len(p.elems)); err != nil {
			return 0, err
		}
	}
	return 0, nil
}
