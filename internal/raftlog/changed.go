package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A write that a crash cut short has sectors that are missing. A byte that has
// changed on the disk can look like that, and what comes behind it would then be
// forgotten although it was acknowledged. The two are told apart by trying: if
// the frame is whole once a single byte of it is put right, no crash did it.
//
// A frame that a crash tore passes for changed with probability n*255/2^32, n
// bytes being checked by the sum; then the member does not start, and says why.

// maxChanged bounds the frames that are looked at.
const maxChanged = 4 << 20

var errChanged = fmt.Errorf("%w: a byte has changed", errChecksum)

// maxRecordHead is more than the fields of a record before its data take.
const maxRecordHead = 24

// changed reports whether the frame at off, which failed its check, is whole with
// one byte put right. crc is the running checksum before it.
func changed(f vfs.File, path string, off, size int64, crc uint32) (bool, error) {
	b := make([]byte, min(size-off, maxChanged))
	if n, err := f.ReadAt(b, off); err != nil && err != io.EOF {
		return false, fmt.Errorf("raftlog: read %s at offset %d: %w", path, off, err)
	} else if b = b[:n]; n < frameHeader {
		return false, nil
	}
	sector := min(int64(len(b)), sectorSize-off%sectorSize)
	if allZero(b[:sector]) {
		return false, nil // a sector that was not written
	}
	for i := range frameHeader {
		was := b[i]
		for x := 1; x < 256; x++ {
			b[i] = was ^ byte(x)
			n, pad, ok := splitLength(binary.LittleEndian.Uint64(b))
			if !ok || n == 0 || n+pad > int64(len(b)-frameHeader) {
				continue
			}
			if _, _, err := checkRecord(b[frameHeader:][:n], crc); err == nil {
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
	if r, err := decodeRecord(body); err == nil && oneByteOff(crc32.Update(crc, castagnoli, r.Data)^r.CRC, len(r.Data)) {
		return true, nil
	}
	for i := range min(len(body), maxRecordHead) {
		was := body[i]
		for x := 1; x < 256; x++ {
			body[i] = was ^ byte(x)
			if _, _, err := checkRecord(body, crc); err == nil {
				return true, nil
			}
		}
		body[i] = was
	}
	return false, nil
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
