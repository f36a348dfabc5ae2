package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/engine"
)

// Pebble stops reading its manifest at the first damaged record, as if a crash had torn
// it, and then deletes the tables that it does not know of. A crash tears only the last
// record, because each is synced before the next is written. So an intact record after
// a damaged one proves that the damage was not caused by a crash.
//
// The file consists of blocks of 32 KiB. A record is one chunk (full) or several
// (first, middle.., last); no chunk crosses the end of a block:
//
//	offset 0  4 bytes  checksum of the rest, little endian
//	offset 4  2 bytes  length of the payload, little endian
//	offset 6  1 byte   1 full, 2 first, 3 middle, 4 last
//	offset 7           payload
const (
	chunkBlock  = 32 << 10
	chunkHeader = 7
	chunkFull   = 1
	chunkFirst  = 2
	chunkLast   = 4
)

var (
	crcTable        = crc32.MakeTable(crc32.Castagnoli)
	errManifest     = errors.New("a damaged record in front of an intact one")
	errManifestHead = errors.New("the first record is damaged")
)

// checkManifest checks the manifest of the engine in dir, if there is one.
func checkManifest(fs vfs.FS, dir string) error {
	desc, err := pebble.Peek(dir, fs)
	if err != nil || !desc.Exists {
		return err
	}
	f, err := fs.Open(desc.ManifestFilename)
	if err != nil {
		return &engine.CorruptionError{File: desc.ManifestFilename, Err: err}
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", desc.ManifestFilename, err)
	}
	if off, err := checkRecords(b); err != nil {
		return &engine.CorruptionError{File: desc.ManifestFilename, Err: fmt.Errorf("offset %d: %w", off, err)}
	}
	return nil
}

// checkOptions checks the file of the options that the engine in dir was last opened
// with, if there is one. Pebble compares some options and uses none, so damage that it
// does not notice has no effect; but its error does not name the file.
func checkOptions(fs vfs.FS, dir string, o *pebble.Options) error {
	desc, err := pebble.Peek(dir, fs)
	if err != nil || desc.OptionsFilename == "" {
		return err
	}
	f, err := fs.Open(desc.OptionsFilename)
	if err != nil {
		return fmt.Errorf("read %s: %w", desc.OptionsFilename, err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", desc.OptionsFilename, err)
	}
	o.EnsureDefaults()
	if err := o.CheckCompatibility(dir, string(b)); err != nil {
		return &engine.CorruptionError{File: desc.OptionsFilename, Err: err}
	}
	return nil
}

// checkRecords returns the offset of a damaged record that a crash cannot explain.
func checkRecords(b []byte) (int, error) {
	pos := 0
	for {
		if left := chunkBlock - pos%chunkBlock; left < chunkHeader {
			pos += left // padding
		}
		n, _ := chunk(b, pos)
		if n == 0 {
			break
		}
		pos += n
	}
	if pos >= len(b) {
		return 0, nil
	}
	if pos == 0 {
		return 0, errManifestHead
	}
	for at := pos + 1; at < len(b); at++ {
		if n, kind := chunk(b, at); n > 0 && (kind == chunkFull || kind == chunkFirst) {
			return pos, errManifest
		}
	}
	return 0, nil
}

// chunk returns the size and kind of the chunk at pos, 0 if there is no intact chunk.
func chunk(b []byte, pos int) (size int, kind byte) {
	if pos+chunkHeader > len(b) {
		return 0, 0
	}
	h := b[pos:]
	kind = h[6]
	size = chunkHeader + int(binary.LittleEndian.Uint16(h[4:]))
	if kind < chunkFull || kind > chunkLast || size > len(h) || pos%chunkBlock+size > chunkBlock {
		return 0, 0
	}
	if binary.LittleEndian.Uint32(h) != maskedCRC(h[6:size]) {
		return 0, 0
	}
	return size, kind
}

// maskedCRC is the checksum that Pebble stores of b.
func maskedCRC(b []byte) uint32 {
	c := crc32.Checksum(b, crcTable)
	return (c>>15 | c<<17) + 0xa282ead8
}
