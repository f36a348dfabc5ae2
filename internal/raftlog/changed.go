package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A write torn by a crash has missing sectors, which read as zeros. Bytes that changed
// on disk can look the same, and dropping what follows them would lose acknowledged
// entries. So the first write after synced records begins with a checksum record, as
// at the head of a segment: it says that everything before it was on disk, so damage
// before it is not from a crash. The last group of a log has no such record after it.
// If one changed byte could make that group look torn, because its data contains
// sectors of zeros, the record is written as soon as the group is synced. Damage
// without such a record after it is a torn write.
//
// The record can be lost in a power failure, and logs of etcd and of earlier releases
// have none. So the reader also tries to repair the fields in front of a frame's data,
// and all of a small frame, one byte at a time. A torn write is then mistaken for
// changed bytes with a probability of a few in 100,000; in that case the member
// reports the reason and does not start.

const (
	// maxChanged bounds the size of frames whose fields are tried, in bytes.
	maxChanged = 4 << 20
	// maxTried bounds the data in which every byte is tried: for n bytes, a
	// random checksum matches with probability n*255/2^32.
	maxTried = 512
)

var (
	errChanged = fmt.Errorf("%w: a byte has changed", errChecksum)
	errSynced  = fmt.Errorf("%w in synced data", errChecksum)
)

// doubtful reports whether a frame at file offset off could look torn, as if a
// sector were missing, with at most one byte changed.
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

// appendSynced appends the record that says that everything before it is synced, if
// that is the case and not recorded yet.
func (w *writer) appendSynced(b []byte) []byte {
	if w.unsynced || w.noted || w.opts.NoSync {
		return b
	}
	b, _ = appendRecord(b, w.crc, TypeCRC, nil)
	return b
}

// noteSynced writes that record at once if the last frames need it. It is best
// effort: the record is not synced, is left out if there is no room, and is lost if
// power fails before the kernel has written it.
func (w *writer) noteSynced() error {
	if !w.doubtful || w.unsynced || w.opts.NoSync {
		return nil
	}
	w.doubtful = false
	if w.off+recordOverhead > w.cap {
		return nil
	}
	err := w.writeRecords(0, func(b []byte, crc uint32) ([]byte, uint32) { return b, crc })
	if errors.Is(err, ErrNoSpace) {
		return nil
	}
	w.noted = err == nil
	return err
}

// syncedBehind reports whether a record after the damaged frame at off says that the
// frame was on disk. That record must be followed by one that continues its checksum,
// or by nothing; otherwise a client's bytes could pass for it.
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

// record decodes a possible record at off and returns its end, 0 if there is none. It
// does not verify checksums.
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
		return Record{}, 0, err // do not read a large body that is not a record
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

// maxRecordHead is an upper bound of the size of a record's fields in front
// of its data.
const maxRecordHead = 24

// changed returns the reason if the frame at off, which failed its check, is not a
// torn write, and nil otherwise. crc is the running checksum before it.
func changed(f vfs.File, path string, off, size int64, crc uint32) (reason, err error) {
	synced, err := syncedBehind(&window{f: f, size: size}, off)
	if err != nil {
		return nil, fmt.Errorf("raftlog: read %s after offset %d: %w", path, off, err)
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

// oneByteChanged reports whether the frame at off is valid with one byte corrected.
func oneByteChanged(f vfs.File, path string, off, size int64, crc uint32) (bool, error) {
	b := make([]byte, min(size-off, maxChanged))
	if n, err := f.ReadAt(b, off); err != nil && err != io.EOF {
		return false, fmt.Errorf("raftlog: read %s at offset %d: %w", path, off, err)
	} else if b = b[:n]; n < frameHeader {
		return false, nil
	}
	sector := min(int64(len(b)), sectorSize-off%sectorSize)
	if sector > frameHeader && allZero(b[:sector]) {
		return false, nil // this sector was never written
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

// checker is checkRecord for many bodies with mostly the same data.
type checker struct {
	crc  uint32 // before the record
	at   *byte  // the data of the last check
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

// oneByteOff reports whether one changed byte among n can change the checksum by
// diff. A byte that differs by x changes the checksum by table[x], and each
// further byte shifts that difference as a checksum of zeros would; so oneByteOff
// shifts it back until it equals an entry of the table.
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

// topIndex finds the entry of the checksum table by its top byte, which is
// unique.
var topIndex = func() (index [256]byte) {
	for i, v := range castagnoli {
		index[v>>24] = byte(i)
	}
	return index
}()
