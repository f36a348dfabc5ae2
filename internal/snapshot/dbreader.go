package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/engine"
)

// Bounds on what is accepted from a database.
const (
	maxPageRun = 1 << 30 // bytes of one page with its overflow pages
	maxDepth   = 32      // levels of a tree
)

var errDatabase = errors.New("not a bbolt database")

// dbReader reads a bbolt database that may be damaged in any way. It uses plain reads
// and validates every number that it follows, where bbolt maps the file and trusts it.
type dbReader struct {
	ctx      context.Context
	f        vfs.File
	path     string
	pageSize int64
	pages    uint64 // valid page ids are less than this
	root     uint64
	txid     uint64   // of the newest transaction
	size     int64    // of the file
	changed  int64    // modification time of the file, in Unix nanoseconds
	used     []uint64 // bit i: page i has been read; no page may be referenced twice
	reads    int
	visited  uint64 // pages read, with overflow pages
	bufs     [maxDepth + 1][]byte
}

// corrupt returns the error for a damaged page.
func (r *dbReader) corrupt(page uint64, format string, args ...any) error {
	return &CorruptError{File: r.path, Offset: int64(page) * r.pageSize, Err: fmt.Errorf(format, args...)}
}

func newDBReader(ctx context.Context, f vfs.File, path string) (*dbReader, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("snapshot: stat %s: %w", path, err)
	}
	r := &dbReader{ctx: ctx, f: f, path: path, size: st.Size(), changed: st.ModTime().UnixNano()}
	if err := r.findMeta(st.Size()); err != nil {
		return nil, err
	}
	if r.pages > uint64(st.Size()/r.pageSize) {
		return nil, r.corrupt(0, "%w: %d pages of %d bytes are said to be in %d bytes", errDatabase, r.pages, r.pageSize, st.Size())
	}
	r.used = make([]uint64, r.pages/64+1)
	return r, nil
}

// findMeta uses the valid meta page with the newest transaction. The second meta page
// follows one page after the first; the page size is unknown if the first is damaged.
func (r *dbReader) findMeta(size int64) error {
	var newest uint64
	found := false
	at := []int64{0}
	for s := int64(1024); s <= 65536; s *= 2 {
		at = append(at, s)
	}
	var buf [pageHeaderBytes + metaBytes]byte
	for _, off := range at {
		if off+int64(len(buf)) > size {
			break
		}
		if _, err := r.f.ReadAt(buf[:], off); err != nil && err != io.EOF {
			return fmt.Errorf("snapshot: read %s at offset %d: %w", r.path, off, err)
		}
		m := buf[pageHeaderBytes:]
		le := binary.LittleEndian
		if le.Uint32(m) != dbMagic || le.Uint32(m[4:]) != dbVersion || le.Uint64(m[56:]) != metaSum(m) {
			continue
		}
		pageSize, txid := int64(le.Uint32(m[8:])), le.Uint64(m[48:])
		if pageSize < 512 || pageSize&(pageSize-1) != 0 || pageSize > 1<<20 || off != 0 && off != pageSize {
			continue
		}
		if !found || txid > newest {
			found, newest, r.txid = true, txid, txid
			r.pageSize, r.root, r.pages = pageSize, le.Uint64(m[16:]), le.Uint64(m[40:])
		}
	}
	if !found {
		return &CorruptError{File: r.path, Err: fmt.Errorf("%w: no valid meta page", errDatabase)}
	}
	return nil
}

// identity distinguishes the database from others and from earlier states of itself:
// bbolt numbers its transactions and writes their changes to other pages.
func (r *dbReader) identity() []byte {
	b := binary.AppendUvarint(nil, r.txid)
	b = binary.AppendUvarint(b, r.root)
	b = binary.AppendUvarint(b, r.pages)
	// Another database moved to this path may have the same numbers, as restored ones do.
	b = binary.AppendVarint(b, r.size)
	return binary.AppendVarint(b, r.changed)
}

// page reads a page with its overflow pages. The result is valid until the next
// page is read at the same depth.
func (r *dbReader) page(id uint64, depth int) ([]byte, error) {
	if id < 2 || id >= r.pages {
		return nil, r.corrupt(min(id, r.pages), "page %d is outside of 2..%d", id, r.pages)
	}
	if depth > maxDepth {
		return nil, r.corrupt(id, "tree is deeper than %d levels", maxDepth)
	}
	if r.reads++; r.reads%256 == 0 && r.ctx.Err() != nil {
		return nil, context.Cause(r.ctx)
	}
	b, err := r.read(id, 1, depth)
	if err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint64(b); got != id {
		return nil, r.corrupt(id, "page says that it is page %d", got)
	}
	more := uint64(binary.LittleEndian.Uint32(b[12:]))
	if more >= r.pages-id || (int64(more)+1)*r.pageSize > maxPageRun {
		return nil, r.corrupt(id, "page claims %d overflow pages", more)
	}
	for i := id; i <= id+more; i++ {
		if r.used[i/64]>>(i%64)&1 != 0 {
			return nil, r.corrupt(i, "page is used twice")
		}
		r.used[i/64] |= 1 << (i % 64)
	}
	r.visited += more + 1
	if more == 0 {
		return b, nil
	}
	return r.read(id, int64(more)+1, depth)
}

func (r *dbReader) read(id uint64, pages int64, depth int) ([]byte, error) {
	size := pages * r.pageSize
	if int64(cap(r.bufs[depth])) < size || cap(r.bufs[depth]) > 1<<20 {
		r.bufs[depth] = make([]byte, size)
	}
	b := r.bufs[depth][:size]
	if n, err := r.f.ReadAt(b, int64(id)*r.pageSize); n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("snapshot: read %s at offset %d: %w", r.path, int64(id)*r.pageSize, err)
	}
	return b, nil
}

// treeReader walks one tree. Its pages must form a B+ tree as bbolt writes it: keys
// ascend, no key in a child is less than the parent's key for that child, and all
// leaves have the same depth.
type treeReader struct {
	*dbReader
	last  []byte // newest key, nil before the first
	leafs int    // depth of the leaves, -1 before the first
	fn    func(flags uint32, key, value []byte) error
}

// walk calls fn for every leaf element of the tree below a page, in order.
func (r *dbReader) walk(root uint64, fn func(flags uint32, key, value []byte) error) error {
	t := &treeReader{dbReader: r, leafs: -1, fn: fn}
	return t.page(root, 0, nil)
}

// page reads the tree below a page, in which no key may be less than floor.
func (t *treeReader) page(id uint64, depth int, floor []byte) error {
	b, err := t.dbReader.page(id, depth)
	if err != nil {
		return err
	}
	count := int(binary.LittleEndian.Uint16(b[10:]))
	if pageHeaderBytes+elementBytes*count > len(b) {
		return t.corrupt(id, "page of %d bytes claims %d elements", len(b), count)
	}
	switch flags := binary.LittleEndian.Uint16(b[8:]); flags {
	case flagLeaf:
		if t.leafs >= 0 && t.leafs != depth {
			return t.corrupt(id, "leaf at depth %d, others are at %d", depth, t.leafs)
		}
		t.leafs = depth
		return t.leaf(id, b, count, floor)
	case flagBranch:
		return t.branch(id, b, count, depth, floor)
	default:
		return t.corrupt(id, "page with flags %#x inside a tree", flags)
	}
}

// order checks a key of page id against the previous keys.
func (t *treeReader) order(id uint64, key, floor []byte) error {
	if len(key) == 0 || len(key) > maxKeyBytes {
		return t.corrupt(id, "%w: %d bytes", errKeySize, len(key))
	}
	if t.last != nil && bytes.Compare(key, t.last) <= 0 {
		return t.corrupt(id, "%w: %q after %q", errKeyOrder, key, t.last)
	}
	if bytes.Compare(key, floor) < 0 {
		return t.corrupt(id, "%w: %q below %q in the parent", errKeyOrder, key, floor)
	}
	return nil
}

func (t *treeReader) branch(id uint64, b []byte, count, depth int, floor []byte) error {
	if count == 0 {
		return t.corrupt(id, "branch page without children")
	}
	for i := range count {
		e := b[pageHeaderBytes+elementBytes*i:]
		pos, size := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
		key, ok := slice(e, elementBytes, uint64(pos), uint64(size))
		if !ok {
			return t.corrupt(id, "key of child %d lies outside of the page", i)
		}
		if err := t.order(id, key, floor); err != nil {
			return err
		}
		if err := t.page(binary.LittleEndian.Uint64(e[8:]), depth+1, key); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeReader) leaf(id uint64, b []byte, count int, floor []byte) error {
	for i := range count {
		e := b[pageHeaderBytes+elementBytes*i:]
		le := binary.LittleEndian
		pos, ksize, vsize := uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		kv, ok := slice(e, elementBytes, pos, ksize+vsize)
		if !ok {
			return t.corrupt(id, "element %d lies outside of the page", i)
		}
		key, value := kv[:ksize], kv[ksize:]
		if err := t.order(id, key, floor); err != nil {
			return err
		}
		t.last = append(t.last[:0], key...)
		if err := t.fn(le.Uint32(e), key, value); err != nil {
			return err
		}
	}
	return nil
}

// slice returns b[pos:pos+size] if it lies within b and starts at or after from.
func slice(b []byte, from int, pos, size uint64) ([]byte, bool) {
	if pos < uint64(from) || pos+size > uint64(len(b)) {
		return nil, false
	}
	return b[pos : pos+size : pos+size], true
}

// maxBuckets bounds the number of buckets of a database; etcd has ten.
const maxBuckets = 1024

// buckets calls fn for every pair of the buckets that want accepts, in order of the
// bucket names.
func (r *dbReader) buckets(want func(name string) bool, begin func(name string) error, fn func(name string, key, value []byte) error) error {
	type entry struct {
		name   string
		header []byte
	}
	var all []entry
	err := r.walk(r.root, func(flags uint32, key, value []byte) error {
		name := string(key)
		if !want(name) {
			return nil
		}
		if flags != elementBucket || len(value) < bucketHeader {
			return r.corrupt(r.root, "%q is not a bucket", name)
		}
		if len(all) == maxBuckets {
			return r.corrupt(r.root, "more than %d buckets", maxBuckets)
		}
		all = append(all, entry{name, bytes.Clone(value)})
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range all {
		if err := begin(e.name); err != nil {
			return err
		}
		if err := r.bucket(e.name, e.header, fn); err != nil {
			return err
		}
	}
	return nil
}

func (r *dbReader) bucket(name string, header []byte, fn func(name string, key, value []byte) error) error {
	revisions := name == engine.Key.String()
	pair := func(flags uint32, key, value []byte) error {
		if flags != 0 {
			return r.corrupt(r.root, "bucket %s: %q is not a pair", name, key)
		}
		if revisions && !revisionKey(key) {
			return r.corrupt(r.root, "bucket %s: %x is not a revision", name, key)
		}
		return fn(name, key, value)
	}
	if root := binary.LittleEndian.Uint64(header); root != 0 {
		return r.walk(root, pair)
	}
	// A small bucket is stored inline in its parent's page, with its own page header.
	in := header[bucketHeader:]
	if len(in) < pageHeaderBytes {
		return r.corrupt(r.root, "bucket %s has no page", name)
	}
	count := int(binary.LittleEndian.Uint16(in[10:]))
	if binary.LittleEndian.Uint16(in[8:]) != flagLeaf || pageHeaderBytes+elementBytes*count > len(in) {
		return r.corrupt(r.root, "bucket %s has a malformed page", name)
	}
	t := &treeReader{dbReader: r, fn: pair}
	return t.leaf(r.root, in, count, nil)
}

// revisionKey reports whether a key of the bucket key has the form of a revision:
// main, '_', sub, and 't' for a tombstone.
func revisionKey(k []byte) bool {
	return (len(k) == 17 || len(k) == 18 && k[17] == 't') && k[8] == '_'
}

// Read reads a bbolt database of etcd into an engine, which must be empty, and
// flushes it. Bytes after the database, such as the checksum of a backup, are
// ignored. After an error the engine holds a part and must be discarded or, with
// Options.Resume, completed by another Read of the same database: a read that is
// stopped, or a crash, loses only what was not flushed yet.
func Read(ctx context.Context, path string, eng engine.Engine, o Options) (Meta, error) {
	o = o.withDefaults()
	r, err := openDB(ctx, path, o)
	if err != nil {
		return Meta{}, err
	}
	defer r.f.Close()
	c := copying{eng: eng, o: o, r: r, batch: eng.NewBatch()}
	if err := c.begin(); err != nil {
		c.batch.Discard()
		return Meta{}, err
	}
	if err := r.known(c.pair); err != nil {
		c.batch.Discard()
		if o.Resume && ctx.Err() != nil {
			err = errors.Join(err, eng.Flush(context.WithoutCancel(ctx))) // the next Read resumes here
		}
		return Meta{}, err
	}
	if c.pairs < c.had {
		c.batch.Discard()
		return Meta{}, fmt.Errorf("snapshot: %w than %s: more than is in it", ErrOtherFile, path)
	}
	if err := c.commit(); err != nil {
		return Meta{}, fmt.Errorf("snapshot: fill the engine from %s: %w", path, err)
	}
	if err := eng.Flush(context.WithoutCancel(ctx)); err != nil {
		return Meta{}, fmt.Errorf("snapshot: flush the engine filled from %s: %w", path, err)
	}
	c.progress(true)
	return c.meta, nil
}

// copying fills an engine from a database. Every batch records how far the database
// has been copied with it. The engine persists batches in order, so after a crash the
// record matches the content.
type copying struct {
	eng   engine.Engine
	o     Options
	r     *dbReader
	batch engine.Batch
	meta  Meta
	v2    v2Filter
	pairs int64 // read so far
	had   int64 // of these, already in the engine
}

// copiedKey records what was copied into an engine: the database, and how many pairs.
var copiedKey = engine.Local.K([]byte("copied"))

// begin determines where to begin.
func (c *copying) begin() error {
	if !c.o.Resume {
		return checkEmpty(c.eng)
	}
	note, err := c.eng.Get(nil, copiedKey)
	if errors.Is(err, engine.ErrNotFound) {
		return checkEmpty(c.eng)
	}
	if err != nil {
		return err
	}
	had, n := binary.Uvarint(note)
	if n <= 0 || !bytes.Equal(note[n:], c.r.identity()) || had > math.MaxInt64 {
		return fmt.Errorf("snapshot: %w than %s", ErrOtherFile, c.r.path)
	}
	c.had = int64(had)
	return nil
}

// pair handles one pair of the database. Pairs that the engine already has are only validated.
func (c *copying) pair(b engine.Bucket, key, value []byte) error {
	if err := c.meta.add(b, key, value); err != nil {
		return &CorruptError{File: c.r.path, Err: fmt.Errorf("bucket %v: %w", b, err)}
	}
	if c.pairs++; c.pairs%1024 == 0 {
		c.progress(false)
	}
	if b == engine.V2 && !c.v2.take(key, value, &c.meta) || c.pairs <= c.had {
		return nil
	}
	c.batch.Set(b.K(key), value)
	if c.batch.Len() < c.o.BatchBytes {
		return nil
	}
	return c.commit()
}

func (c *copying) commit() error {
	if c.o.Resume {
		c.batch.Set(copiedKey, append(binary.AppendUvarint(nil, uint64(c.pairs)), c.r.identity()...))
	}
	full := c.batch
	c.batch = c.eng.NewBatch()
	return full.Commit()
}

func (c *copying) progress(done bool) {
	if c.o.Progress != nil {
		c.o.Progress(Progress{Pairs: c.pairs, Resumed: min(c.had, c.pairs), Pages: c.r.visited, AllPages: c.r.pages, Done: done})
	}
}

func openDB(ctx context.Context, path string, o Options) (*dbReader, error) {
	f, err := o.FS.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return nil, fmt.Errorf("snapshot: open %s: %w", path, err)
	}
	r, err := newDBReader(ctx, f, path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// known calls fn for every pair of every known bucket, in order of the bucket names.
// Other buckets are skipped, as in etcd.
func (r *dbReader) known(fn func(b engine.Bucket, key, value []byte) error) error {
	return r.some(func(name string) bool { return bucketByName[name] != 0 }, fn)
}

func (r *dbReader) some(want func(name string) bool, fn func(b engine.Bucket, key, value []byte) error) error {
	var b engine.Bucket
	return r.buckets(want,
		func(name string) error { b = bucketByName[name]; return nil },
		func(_ string, key, value []byte) error { return fn(b, key, value) })
}

// PeekMeta returns the metadata of the database at path, from the two small buckets
// that contain it.
func PeekMeta(ctx context.Context, path string, o Options) (Meta, error) {
	return readMeta(ctx, path, o, func(name string) bool {
		return name == engine.Meta.String() || name == engine.Cluster.String()
	})
}

func readMeta(ctx context.Context, path string, o Options, want func(name string) bool) (Meta, error) {
	r, err := openDB(ctx, path, o.withDefaults())
	if err != nil {
		return Meta{}, err
	}
	defer r.f.Close()
	var m Meta
	err = r.some(want, func(b engine.Bucket, key, value []byte) error {
		if err := m.add(b, key, value); err != nil {
			return &CorruptError{File: path, Err: fmt.Errorf("bucket %v: %w", b, err)}
		}
		return nil
	})
	if err != nil {
		return Meta{}, err
	}
	return m, nil
}

func checkEmpty(r engine.Reader) (err error) {
	it, err := r.NewIter(nil, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.First() {
		return fmt.Errorf("snapshot: %w: it holds key %x", ErrNotEmpty, it.Key())
	}
	return it.Error()
}
