package pebble

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2/objstorage"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"

	"quorate/internal/engine"
	"quorate/internal/scrub"
)

// Scrub implements engine.Scrubber: it reads every block of the tables in use, the manifest
// and the options.
func (s *store) Scrub(r *scrub.Reader) error {
	tables, err := s.tables()
	if err != nil {
		return err
	}
	for _, path := range tables {
		if err := r.File(path, func(f *scrub.File) error { return scrubTable(r, f) }); err != nil {
			return err
		}
	}
	return s.scrubManifest(r)
}

// tables returns the paths of the tables in use.
func (s *store) tables() ([]string, error) {
	if !s.use() {
		return nil, engine.ErrClosed
	}
	defer s.done()
	levels, err := s.db.SSTables()
	if err != nil {
		return nil, s.wrap(err)
	}
	var paths []string
	seen := map[string]bool{} // several virtual tables may share a file
	for _, level := range levels {
		for _, t := range level {
			if path := s.o.FS.PathJoin(s.dir, fmt.Sprintf("%06d.sst", uint64(t.BackingSSTNum))); !seen[path] {
				seen[path] = true
				paths = append(paths, path)
			}
		}
	}
	return paths, nil
}

// manifestTries bounds how often a manifest is looked for that is being replaced.
const manifestTries = 10

func (s *store) scrubManifest(r *scrub.Reader) (err error) {
	for range manifestTries {
		if err = checkManifest(s.o.FS, s.dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	var damaged *engine.CorruptionError
	if errors.As(err, &damaged) {
		r.Report(scrub.Damage{File: damaged.File, Offset: -1, Err: damaged.Err})
		return nil
	}
	return err
}

var errBlock = errors.New("the checksum of a block is wrong")

// scrubTable checks every block of a table. All bytes of a table are in one of its blocks or
// in the footer, which has a checksum, too.
func scrubTable(r *scrub.Reader, f *scrub.File) (err error) {
	damaged := func(off int64, err error) {
		r.Report(scrub.Damage{File: f.Path, Offset: off, Err: err})
	}
	blocks, err := tableBlocks(f)
	if err != nil {
		if r.Stopped() {
			return err
		}
		damaged(f.Last, err)
		return nil
	}
	var buf []byte
	for _, b := range blocks {
		if b.Length == 0 {
			continue
		}
		n := int64(b.Length) + block.TrailerLen
		if int64(b.Offset)+n > f.Size {
			damaged(int64(b.Offset), errors.New("a block extends past the end of the file"))
			continue
		}
		if int64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		if _, err := f.ReadAt(buf[:n], int64(b.Offset)); err != nil {
			if r.Stopped() {
				return err
			}
			damaged(int64(b.Offset), err)
			continue
		}
		// Behind the block are the kind of its compression and the checksum of both. Pebble's
		// own check tries every bit of a damaged block, for a second.
		if sum := buf[b.Length+1 : n]; binary.LittleEndian.Uint32(sum) != maskedCRC(buf[:b.Length+1]) {
			damaged(int64(b.Offset), errBlock)
		}
	}
	return nil
}

// tableBlocks reads the footer and the indexes of a table and returns the places of its
// blocks.
func tableBlocks(f *scrub.File) (blocks []block.Handle, err error) {
	defer func() {
		if p := recover(); p != nil { // Pebble trusts an index whose checksum is right
			err = fmt.Errorf("unreadable table: %v", p)
		}
	}()
	t := &table{f: f}
	t.rh = objstorage.MakeNoopReadHandle(t)
	sr, err := sstable.NewReader(context.Background(), t, sstable.ReaderOptions{})
	if err != nil {
		return nil, err
	}
	l, err := sr.Layout()
	if err != nil {
		return nil, err
	}
	for _, b := range l.Data {
		blocks = append(blocks, b.Handle)
	}
	for _, b := range l.Filter {
		blocks = append(blocks, b.Handle)
	}
	blocks = append(append(blocks, l.Index...), l.ValueBlock...)
	return append(blocks, l.TopIndex, l.RangeDel, l.RangeKey, l.ValueIndex, l.Properties, l.MetaIndex, l.BlobReferenceIndex), nil
}

// table is a file of a scrub as Pebble reads it. It does not close the file.
type table struct {
	f  *scrub.File
	rh objstorage.NoopReadHandle
}

func (t *table) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := t.f.ReadAt(p, off)
	return err
}

func (t *table) Close() error { return nil }
func (t *table) Size() int64  { return t.f.Size }

func (t *table) NewReadHandle(objstorage.ReadBeforeSize) objstorage.ReadHandle { return &t.rh }
