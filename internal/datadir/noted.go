package datadir

import (
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/durable"
	"quorate/internal/engine"
)

// The small files that describe a directory (OWNER, STORE) end with a line that holds
// the checksum of the text before it:
//
//	crc32c 0a1b2c3d

const sumLine = "crc32c %08x\n"

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errNoSum   = errors.New("its last line is not the checksum of the text before it")
)

// WriteNote replaces a small text file atomically: after a crash it has its old or its
// new content.
func WriteNote(fs vfs.FS, path, text string) error {
	return durable.WriteFile(fs, path, []byte(text+fmt.Sprintf(sumLine, crc32.Checksum([]byte(text), castagnoli))))
}

// ReadNote returns the text that WriteNote was given. It returns an
// *engine.CorruptionError if the bytes have changed, os.ErrNotExist if there is no file.
func ReadNote(fs vfs.FS, path string) (string, error) {
	b, err := readSmall(fs, path)
	if err != nil {
		return "", err
	}
	text := b[:max(0, len(b)-len(fmt.Sprintf(sumLine, 0)))]
	if !strings.HasSuffix(b, fmt.Sprintf(sumLine, crc32.Checksum([]byte(text), castagnoli))) {
		return "", &engine.CorruptionError{File: path, Err: errNoSum}
	}
	return text, nil
}
