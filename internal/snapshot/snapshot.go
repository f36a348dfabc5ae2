// Package snapshot is the codec between a member's store and etcd's snapshot files:
// the bbolt database, the .snap file that belongs to the log, and the JSON of the
// membership in it.
//
// In: a point-in-time reader of the engine, or files that etcd or a peer wrote.
// Out: files that etcd, its tools and its peers accept, or a filled engine.
// Always true: a written database holds every pair of the engine at one moment, in
// etcd's buckets, with the same bytes, and the applied index of that moment. A file
// is either read completely or refused; no content of a file causes a panic. Memory
// is bounded by the largest single value, independent of the size of the store.
//
// The layout of the files is described in docs/format/snapshot.md.
package snapshot

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
)

// Errors of Read: the engine is not empty, or holds a part of another file.
var (
	ErrNotEmpty  = errors.New("engine is not empty")
	ErrOtherFile = errors.New("engine holds a part of another file")
)

// CorruptError names a file whose bytes are not a valid database or snapshot file.
type CorruptError struct {
	File   string
	Offset int64 // in bytes, of the damaged page or record
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("snapshot: corrupt file %s at offset %d: %v", e.File, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// Options says where files are. The zero value uses the disk.
type Options struct {
	FS vfs.FS // nil: vfs.Default
	// PageSize of databases that are written, in bytes; 0: that of the machine, as in
	// bbolt. A power of two from 1024 to 65536.
	PageSize int
	// BatchBytes bounds the batches in which Read fills the engine; 0: 4 MiB.
	BatchBytes int
	// Resume lets Read continue an earlier Read of the same file, in a store that holds
	// what that one has written. The store records the file and the position in it.
	Resume bool
	// WithoutV2 omits the tree of the v2 API from databases that are written.
	WithoutV2 bool
	// WithDigest includes the digest of the applied entries: for members of Quorate. Tools
	// of etcd would count its bucket, and etcd would keep it and hash it.
	WithDigest bool
	// Sealed ends databases that Image.WriteTo writes with a checksum, which CheckSeal checks:
	// for members of Quorate.
	Sealed bool
	// Progress, unless nil, is called with the progress of Read, after every 1024 pairs
	// and at the end.
	Progress func(Progress)
}

// Progress of a Read.
type Progress struct {
	Pairs           int64  // read so far, of all buckets
	Resumed         int64  // of these, already in the engine from an earlier Read
	Pages, AllPages uint64 // read so far, and in the file; free pages are never read
	Done            bool   // everything is read, and durable in the engine
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.PageSize == 0 {
		o.PageSize = os.Getpagesize()
	}
	if o.BatchBytes <= 0 {
		o.BatchBytes = 4 << 20
	}
	return o
}

const category = vfs.DiskWriteCategory("snapshot")

// Buckets of the engine by name. Every database has all of them except v2, which is
// present if it is not empty, and the digest, which is present if requested.
var bucketByName = func() map[string]engine.Bucket {
	m := map[string]engine.Bucket{engine.V2.String(): engine.V2, engine.Digest.String(): engine.Digest}
	for b := engine.Alarm; b <= engine.Meta; b++ {
		m[b.String()] = b
	}
	return m
}()

// Meta is the metadata in a database.
type Meta struct {
	ConsistentIndex ids.Index // index of the last applied entry; 0 if absent
	Term            ids.Term  // of that entry; 0 if absent
	ConfState       *raftpb.ConfState
	ClusterVersion  string // as "3.7.0"; empty if absent
	StorageVersion  string // as "3.7.0"; empty if absent
}

// add evaluates a pair of the buckets meta and cluster.
func (m *Meta) add(b engine.Bucket, key, value []byte) error {
	if b == engine.Cluster && string(key) == "clusterVersion" {
		m.ClusterVersion = string(value)
	}
	if b != engine.Meta {
		return nil
	}
	switch string(key) {
	case "consistent_index", "term":
		if len(value) != 8 {
			return fmt.Errorf("%s has %d bytes, want 8", key, len(value))
		}
		if v := binary.BigEndian.Uint64(value); string(key) == "term" {
			m.Term = ids.Term(v)
		} else {
			m.ConsistentIndex = ids.Index(v)
		}
	case "confState":
		m.ConfState = &raftpb.ConfState{}
		if err := json.Unmarshal(value, m.ConfState); err != nil {
			return fmt.Errorf("decode confState: %w", err)
		}
	case "storageVersion":
		m.StorageVersion = string(value)
	}
	return nil
}

// Image is a state that has been measured as a database: its length is known, and
// nothing is written yet. It takes neither disk space nor memory in proportion to its
// size.
type Image struct {
	r    engine.Reader
	o    Options
	x    extent
	meta Meta
}

// Size returns the length of the database in bytes, without the seal.
func (i *Image) Size() int64 { return int64(i.x.pages) * int64(i.o.PageSize) }

// Measure returns an image of what r reads. r must be at a point in time and stay open
// while the image is in use. Measure stops early when ctx is done.
func Measure(ctx context.Context, r engine.Reader, o Options) (*Image, error) {
	i := &Image{r: r, o: o.withDefaults()}
	w, err := measureDB(i.o.PageSize)
	if err == nil {
		i.x, i.meta, err = writeAll(ctx, w, r, i.o)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot: measure the database: %w", err)
	}
	return i, nil
}

// WriteTo writes the database to out, front to back; it may be called repeatedly.
func (i *Image) WriteTo(ctx context.Context, out io.Writer) error {
	sealed := newSealWriter(out)
	if i.o.Sealed {
		out = sealed
	}
	w, err := writeDB(out, i.o.PageSize, i.x)
	if err != nil {
		return fmt.Errorf("snapshot: write the database: %w", err)
	}
	x, _, err := writeAll(ctx, w, i.r, i.o)
	if err == nil && x != i.x {
		err = fmt.Errorf("it was measured as %v and came to %v", i.x, x)
	}
	if err == nil && i.o.Sealed {
		err = sealed.seal()
	}
	if err != nil {
		return fmt.Errorf("snapshot: write the database: %w", err)
	}
	return nil
}

// writeAll writes or measures everything that r reads.
func writeAll(ctx context.Context, w *dbWriter, r engine.Reader, o Options) (x extent, meta Meta, err error) {
	for b := engine.Alarm; b <= engine.Meta; b++ {
		if err := writeBucket(ctx, w, r, b, &meta); err != nil {
			return x, meta, fmt.Errorf("bucket %v: %w", b, err)
		}
	}
	if o.WithDigest { // the digest itself records the index that it belongs to
		if err := writeBucket(ctx, w, r, engine.Digest, &meta); err != nil {
			return x, meta, fmt.Errorf("bucket %v: %w", engine.Digest, err)
		}
	}
	if !o.WithoutV2 {
		if err := writeV2(ctx, w, r, meta.ConsistentIndex); err != nil {
			return x, meta, fmt.Errorf("bucket %v: %w", engine.V2, err)
		}
	}
	x, err = w.finish()
	return x, meta, err
}

// tmpSeq makes the names of temporary files of this process unique.
var tmpSeq atomic.Uint64

// tmpPath returns a path in dir that IsTemp matches.
func tmpPath(fs vfs.FS, dir string) string {
	return fs.PathJoin(dir, fmt.Sprintf("tmp%d-%d", os.Getpid(), tmpSeq.Add(1)))
}

// writeBucket copies one bucket. Buckets must be written in order of their names.
func writeBucket(ctx context.Context, w *dbWriter, r engine.Reader, b engine.Bucket, m *Meta) (err error) {
	lower, upper := b.Bounds()
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	tree := w.tree()
	add := func(key, value []byte) error {
		if err := m.add(b, key, value); err != nil {
			return err
		}
		return tree.add(key, value, 0)
	}
	var stored []byte // the storage version, until its position in the key order is reached
	if b == engine.Meta {
		if stored, err = storageVersion(r, m.ClusterVersion); err != nil {
			return err
		}
	}
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		value, err := it.Value()
		if err != nil {
			return err
		}
		key := it.Key()[1:]
		if b == engine.Meta && string(key) == storageVersionKey {
			continue
		}
		if stored != nil && string(key) > storageVersionKey {
			if err := add([]byte(storageVersionKey), stored); err != nil {
				return err
			}
			stored = nil
		}
		if err := add(key, value); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	if stored != nil {
		if err := add([]byte(storageVersionKey), stored); err != nil {
			return err
		}
	}
	root, err := tree.finish()
	if err != nil {
		return err
	}
	return w.bucket(b.String(), root)
}

// v2AtKey is a key in the bucket v2 of a database only. Its value is the applied index
// of the bucket's content. Etcd leaves a bucket that it does not know unchanged while
// it changes the rest of its database; if the index differs from the database's own
// applied index, the bucket is stale.
var v2AtKey = []byte{0}

// writeV2 copies the tree of the v2 API, if there is one.
func writeV2(ctx context.Context, w *dbWriter, r engine.Reader, index ids.Index) (err error) {
	lower, upper := engine.V2.Bounds()
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.First() {
		return it.Error()
	}
	tree := w.tree()
	if err := tree.add(v2AtKey, binary.BigEndian.AppendUint64(nil, uint64(index)), 0); err != nil {
		return err
	}
	n := 0
	for ok := true; ok; ok = it.Next() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		value, err := it.Value()
		if err != nil {
			return err
		}
		if err := tree.add(it.Key()[1:], value, 0); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	root, err := tree.finish()
	if err != nil {
		return err
	}
	return w.bucket(engine.V2.String(), root)
}

// v2Filter filters the pairs of the bucket v2 of a database that is read.
type v2Filter struct{ current bool }

// take reports whether a pair belongs in the engine. The applied index is known by
// then: the bucket meta precedes v2.
func (f *v2Filter) take(key, value []byte, m *Meta) bool {
	if string(key) == string(v2AtKey) {
		f.current = len(value) == 8 && ids.Index(binary.BigEndian.Uint64(value)) == m.ConsistentIndex
		return false
	}
	return f.current
}

// Export writes what r reads as a bbolt database to path, atomically and durably, and
// returns its metadata.
func Export(ctx context.Context, r engine.Reader, path string, o Options) (Meta, error) {
	o = o.withDefaults()
	i, err := Measure(ctx, r, o)
	if err != nil {
		return Meta{}, err
	}
	if err := save(o.FS, path, func(f *durable.File) error { return i.WriteTo(ctx, f) }); err != nil {
		return Meta{}, err
	}
	return i.meta, nil
}

const storageVersionKey = "storageVersion"

// storageVersion returns the value of meta/storageVersion in a database for etcd, nil
// for none. It tells etcd which releases may open the file: the stored version, but at
// most the cluster version, which is also used if none is stored. Releases before 3.6
// do not know the field. A stored text that is not a version is left unchanged.
func storageVersion(r engine.Reader, clusterVersion string) ([]byte, error) {
	text, err := r.Get(nil, engine.Meta.K([]byte(storageVersionKey)))
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return nil, err
	}
	stored := err == nil
	cluster, err := membership.ParseVersion(clusterVersion)
	decided := err == nil
	v := cluster
	if stored {
		if v, err = membership.ParseVersion(string(text)); err != nil {
			return text, nil
		}
		if decided && cluster.Less(v) {
			v = cluster
		}
	} else if !decided {
		return nil, nil
	}
	if v = v.MajorMinor(); v.Less(membership.FirstStorageVersion) {
		return nil, nil
	}
	return []byte(v.String()), nil
}
