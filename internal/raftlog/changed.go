package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A write that a crash cut short has sectors that are missing: they are zero. What
// has changed on the disk can look like that, too, and what comes behind it would then
// be forgotten although it was acknowledged. So whatever is written behind records
// that were synced begins with a checksum record, as at the head of a segment: it
// says that all before it was on the disk, and damage before it is no crash's. The
// last group of a log has none behind it. If one byte could make it look torn, because
// there are sectors of zeros in its data, the record is written as soon as it is
// synced. Damage that has no such record behind it is a write that was cut short.
//
// A record can get lost with the power, and logs of etcd and of former releases have
// none. So the fields of a frame before its data, and a small frame as a whole, are
// put right one byte at a time. A write that a crash tore passes for changed with a
// probability of a few in 100,000 then; the member does not start, and says why.

const (
	// maxChanged bounds the frames of which the fields are tried.
	maxChanged = 4 << 20
	// maxTried bounds the data of which each byte is tried: with n bytes a random
	// checksum fits n*255/2^32 times.
	maxTried = 512
)

var (
	errChanged = fmt.Errorf("%w: a byte has changed", errChecksum)
	errSynced  = fmt.Errorf("%w in what had been synced", errChecksum)
)

// doubtful reports whether a frame at file offset off, with one byte changed at
// most, could look as if a sector of it were missing.
func doubtful(frame []byte, off int64) bool {
	frame, off = frame[frameHeader:], off+frameHeader
	for len(frame) > 0 {
		n := min(int(sectorSize-off%sectorSize), len(frame))
		if fewerThanTwo(frame[:n]) {
			return true
		}
		frame, off = frame[n:], off+int64(n)
	}
	return false
}

// fewerThanTwo reports whether at most one byte is not zero.
func fewerThanTwo(b []byte) bool {
	seen := false
	for _, c := range b {
		if c == 0 {
			continue
		}
		if seen {
			return false
		}
		seen = true
	}
	return true
}

// appendSynced appends the record that says that all before it is synced, if that is
// so and not said yet.
func (l *Log) appendSynced(b []byte) []byte {
	if l.unsynced || l.noted || l.opts.NoSync {
		return b
	}
	b, _ = appendRecord(b, l.crc, TypeCRC, nil)
	return b
}

// noteSynced writes that record at once if the last frames need it. It is not synced,
// and may be missing: for want of room, or when power is lost before the system has
// written it.
func (l *Log) noteSynced() error {
	if !l.doubtful || l.unsynced || l.opts.NoSync {
		return nil
	}
	l.doubtful = false
	if l.tailOff+recordOverhead > l.tailCap {
		return nil
	}
	err := l.writeRecords(0, func(b []byte, crc uint32) ([]byte, uint32) { return b, crc })
	if errors.Is(err, ErrNoSpace) {
		return nil
	}
	l.noted = err == nil
	return err
}

// syncedBehind reports whether a record behind the damaged frame at off says that the
// frame was on the disk. It must be followed by a record that goes on with its
// checksum, or by nothing; bytes of a client could look like it otherwise.
func syncedBehind(w *window, off int64) (bool, error) {
	for off = off + frameHeader; w.size-off >= frameHeader; off += frameHeader {
		r, end, err := w.record(off)
		if err != nil {
			return false, err
		}
		if end == 0 || r.Type != TypeCRC {
			continue
		}
		next, _, err := w.record(end)
		if err != nil {
			return false, err
		}
		if next.Type != 0 && crc32.Update(r.CRC, castagnoli, next.Data) == next.CRC {
			return true, nil
		}
		if dirt, err := lastNonZero(w.f, end, w.size); err != nil || dirt == end {
			return err == nil, err
		}
	}
	return false, nil
}

// record decodes what may be a record at off and returns where it ends; 0 if there is
// none. Checksums are not checked.
func (w *window) record(off int64) (Record, int64, error) {
	if w.size-off < frameHeader {
		return Record{}, 0, nil
	}
	h, err := w.bytes(off, frameHeader)
	if err != nil {
		return Record{}, 0, err
	}
	n, pad, ok := splitLength(binary.LittleEndian.Uint64(h))
	if !ok || n == 0 || n+pad > w.size-off-frameHeader {
		return Record{}, 0, nil
	}
	head, err := w.bytes(off+frameHeader, int(min(n, 2)))
	if err != nil || head[0] != 0x08 {
		return Record{}, 0, err // what is not a record must not be read as a whole
	}
	body, err := w.bytes(off+frameHeader, int(n))
	if err != nil {
		return Record{}, 0, err
	}
	r, err := decodeRecord(body)
	if err != nil {
		return Record{}, 0, nil
	}
	return r, off + frameHeader + n + pad, nil
}

// maxRecordHead is more than the fields of a record before its data take.
const maxRecordHead = 24

// changed returns the reason if the frame at off, which failed its check, is not a
// write that was cut short, and nil otherwise. crc is the running checksum before it.
func changed(f vfs.File, path string, off, size int64, crc uint32) (reason, err error) {
	synced, err := syncedBehind(&window{f: f, size: size}, off)
	if err != nil {
		return nil, fmt.Errorf("raftlog: read %s behind offset %d: %w", path, off, err)
	}
	if synced {
		return errSynced, nil
	}
	is, err := oneByteChanged(f, path, off, size, crc)
	if is {
		reason = errChanged
	}
	return reason, err
}

// oneByteChanged reports whether the frame at off is whole with one byte put right.
func oneByteChanged(f vfs.File, path string, off, size int64, crc uint32) (bool, error) {
	b := make([]byte, min(size-off, maxChanged))
	if n, err := f.ReadAt(b, off); err != nil && err != io.EOF {
		return false, fmt.Errorf("raftlog: read %s at offset %d: %w", path, off, err)
	} else if b = b[:n]; n < frameHeader {
		return false, nil
	}
	sector := min(int64(len(b)), sectorSize-off%sectorSize)
	if sector > frameHeader && allZero(b[:sector]) {
		return false, nil // a sector that was not written
	}
	check := checker{crc: crc}
	for i := range frameHeader {
		was := b[i]
		for x := 1; x < 256; x++ {
			b[i] = was ^ byte(x)
			n, pad, ok := splitLength(binary.LittleEndian.Uint64(b))
			if ok && n > 0 && n+pad <= int64(len(b)-frameHeader) && check.whole(b[frameHeader:][:n]) {
				return true, nil
			}
		}
		b[i] = was
	}
	n, pad, ok := splitLength(binary.LittleEndian.Uint64(b))
	if !ok || n == 0 || n+pad > int64(len(b)-frameHeader) {
		return false, nil
	}
	body := b[frameHeader:][:n]
	head := min(len(body), maxRecordHead)
	if r, err := decodeRecord(body); err == nil {
		if len(r.Data) <= maxTried && oneByteOff(crc32.Update(crc, castagnoli, r.Data)^r.CRC, len(r.Data)) {
			return true, nil
		}
		head = min(head, len(body)-len(r.Data))
	}
	for i := range head {
		was := body[i]
		for x := 1; x < 256; x++ {
			body[i] = was ^ byte(x)
			if check.whole(body) {
				return true, nil
			}
		}
		body[i] = was
	}
	return false, nil
}

// checker is checkRecord for bodies whose data is mostly the same.
type checker struct {
	crc  uint32 // before the record
	at   *byte  // the data that was looked at last
	n    int
	last uint32
}

func (c *checker) whole(body []byte) bool {
	r, err := decodeRecord(body)
	if err != nil {
		return false
	}
	if r.Type == TypeCRC {
		return c.crc == 0 || r.CRC == c.crc
	}
	if len(r.Data) < 64 {
		return crc32.Update(c.crc, castagnoli, r.Data) == r.CRC
	}
	if at := &r.Data[0]; at != c.at || len(r.Data) != c.n {
		c.at, c.n, c.last = at, len(r.Data), crc32.Update(c.crc, castagnoli, r.Data)
	}
	return c.last == r.CRC
}

// oneByteOff reports whether one changed byte among n turns a right checksum into
// one that differs by diff. A byte that differs by x leaves the difference
// table[x] behind it, and each further byte moves the difference on as if it were
// a checksum of zeros; so it is moved back until it is one of table's.
func oneByteOff(diff uint32, n int) bool {
	for range n {
		x := topIndex[diff>>24]
		rest := diff ^ castagnoli[x]
		if rest == 0 && x != 0 {
			return true
		}
		diff = rest<<8 | uint32(x)
	}
	return false
}

// topIndex finds the entry of the checksum's table by its top byte; no two have
// the same.
var topIndex = func() (index [256]byte) {
	for i, v := range castagnoli {
		index[v>>24] = byte(i)
	}
	return index
}()
