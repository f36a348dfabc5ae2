package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/ids"
)

// segment names one file of the log: its sequence number and the index of the
// first entry expected in it when it was created.
type segment struct {
	seq   uint64
	index ids.Index
}

func (s segment) name() string { return fmt.Sprintf("%016x-%016x.wal", s.seq, s.index) }

// parseName is the inverse of segment.name and accepts nothing else.
func parseName(name string) (segment, bool) {
	base, ok := strings.CutSuffix(name, ".wal")
	if !ok || len(base) != 33 || base[16] != '-' {
		return segment{}, false
	}
	seq, err1 := strconv.ParseUint(base[:16], 16, 64)
	index, err2 := strconv.ParseUint(base[17:], 16, 64)
	return segment{seq, ids.Index(index)}, err1 == nil && err2 == nil
}

// errTorn marks the position of a torn write in the last segment.
var errTorn = errors.New("torn write")

// window reads a file sequentially through one buffer.
type window struct {
	f    vfs.File
	size int64
	off  int64 // file offset of buf[0]
	buf  []byte
}

const windowBytes = 256 << 10

// bytes returns n bytes at off, which must lie within the file. The result is
// valid until the next call.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	if off >= w.off && off+int64(n) <= w.off+int64(len(w.buf)) {
		return w.buf[off-w.off:][:n], nil
	}
	want := min(max(int64(n), windowBytes), w.size-off)
	if int64(cap(w.buf)) < want {
		w.buf = make([]byte, want)
	}
	w.buf, w.off = w.buf[:want], off
	got, err := w.f.ReadAt(w.buf, off)
	if int64(got) < want {
		w.buf = w.buf[:0]
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return w.buf[:n], nil
}

// scanSegment calls fn for each record of a file with its offset and the
// running checksum before it, and returns the offset after the last good
// record and the running checksum there. crc is the running checksum before
// the file. Data passed to fn is valid during the call only.
//
// In the last segment of a log, a torn write ends the scan with errTorn. Any
// other damage is a *CorruptError, as is any error of fn.
func scanSegment(f vfs.File, path string, size int64, last bool, crc uint32,
	fn func(off int64, before uint32, r Record) error) (int64, uint32, error) {
	w := &window{f: f, size: size}
	var off int64
	bad := func(err error) (int64, uint32, error) {
		return off, crc, &CorruptError{File: path, Offset: off, Err: err}
	}
	cut := func() (int64, uint32, error) {
		if reason, err := changed(f, path, off, size, crc); err != nil {
			return off, crc, err
		} else if reason != nil {
			return bad(reason)
		}
		return off, crc, errTorn
	}
	for size-off >= frameHeader {
		h, err := w.bytes(off, frameHeader)
		if err != nil {
			return off, crc, fmt.Errorf("raftlog: read %s at offset %d: %w", path, off, err)
		}
		length := binary.LittleEndian.Uint64(h)
		if length == 0 {
			return off, crc, nil // recovery.tail checks what follows
		}
		n, pad, ok := splitLength(length)
		switch {
		case !ok:
			return bad(errLength)
		case n+pad > size-off-frameHeader && last:
			return cut()
		case n+pad > size-off-frameHeader:
			return bad(fmt.Errorf("%w: %d bytes, more than the file has", errLength, n))
		}
		body, err := w.bytes(off+frameHeader, int(n+pad))
		if err != nil {
			return off, crc, fmt.Errorf("raftlog: read %s at offset %d: %w", path, off, err)
		}
		next, r, err := checkRecord(body[:n], crc)
		if err != nil {
			if last && torn(body, off+frameHeader) {
				return cut()
			}
			return bad(err)
		}
		if fn != nil {
			if err := fn(off, crc, r); err != nil {
				return bad(err)
			}
		}
		crc, off = next, off+frameHeader+n+pad
	}
	rest, err := w.bytes(off, int(size-off))
	switch {
	case err != nil:
		return off, crc, fmt.Errorf("raftlog: read %s at offset %d: %w", path, off, err)
	case allZero(rest):
		return off, crc, nil
	case last:
		return off, crc, errTorn
	}
	return bad(fmt.Errorf("%w: cut short", errLength))
}

// checkRecord decodes the body of a frame and checks it against the running
// checksum; it returns the running checksum after it.
func checkRecord(body []byte, crc uint32) (uint32, Record, error) {
	r, err := decodeRecord(body)
	if err != nil {
		return 0, r, err
	}
	if r.Type == TypeCRC {
		// A checksum of zero means that nothing was read yet.
		if crc != 0 && r.CRC != crc {
			return 0, r, errChecksum
		}
		return r.CRC, r, nil
	}
	if next := crc32.Update(crc, castagnoli, r.Data); next != r.CRC {
		return 0, r, errChecksum
	}
	return r.CRC, r, nil
}

// lastNonZero returns the offset after the last byte at or after off that is
// not zero, or off if there is none.
func lastNonZero(f vfs.File, off, size int64) (int64, error) {
	end := off
	buf := make([]byte, windowBytes)
	for {
		if off = nextData(f, off, size); off >= size {
			return end, nil
		}
		b := buf[:min(int64(len(buf)), size-off)]
		n, err := f.ReadAt(b, off)
		if n < len(b) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		if !allZero(b) {
			for n > 0 && b[n-1] == 0 {
				n--
			}
			end = off + int64(n)
		}
		off += int64(len(b))
	}
}

// copyPrefix copies the first n bytes of f to a new file at path and syncs it.
// The caller syncs the directory.
func copyPrefix(fs vfs.FS, path string, f vfs.File, n int64) error {
	out, err := fs.Create(path, category)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(f, 0, n))
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, setPrivate(out), out.Close())
}

// writeZeros overwrites [from, to) with zeros.
func writeZeros(f vfs.File, from, to int64) error {
	buf := make([]byte, min(windowBytes, to-from))
	for from < to {
		b := buf[:min(int64(len(buf)), to-from)]
		clear(b)
		if _, err := f.WriteAt(b, from); err != nil {
			return err
		}
		from += int64(len(b))
	}
	return nil
}

// allocate creates a file with size bytes reserved on the disk.
func allocate(fs vfs.FS, path string, size int64) (vfs.File, error) {
	if err := fs.Remove(path); err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("raftlog: remove %s: %w", path, err)
	}
	f, err := fs.OpenReadWrite(path, category)
	if err != nil {
		return nil, fmt.Errorf("raftlog: create %s: %w", path, noSpace(err))
	}
	if err := prepare(f, 0, size); err != nil {
		return nil, errors.Join(fmt.Errorf("raftlog: preallocate %s: %w", path, noSpace(err)), f.Close(), fs.Remove(path))
	}
	return f, nil
}

func prepare(f vfs.File, off, size int64) error {
	if err := setPrivate(f); err != nil {
		return err
	}
	if err := lockSegment(f); err != nil {
		return err
	}
	if err := reserve(f, off, size); err != nil {
		return err
	}
	return f.Sync()
}

// reserve allocates disk space for [off, size) of the file, so that writing
// there can neither fail for lack of space nor change the size.
func reserve(f vfs.File, off, size int64) error {
	if off >= size {
		return nil
	}
	if err := f.Preallocate(off, size-off); err != nil && !reserveUnsupported(err) {
		return err
	}
	return setSize(f, size)
}
