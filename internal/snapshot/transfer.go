package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const dbSuffix = ".snap.db"

// DBName returns the name under which a database received from a peer is kept
// until it is installed.
func DBName(index uint64) string { return fmt.Sprintf("%016x%s", index, dbSuffix) }

// contextReader ends with the context between two reads.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// IsTemp reports whether a file of this name is one that this package was writing:
// when nobody is, it is what a crash has left.
func IsTemp(name string) bool { return strings.HasPrefix(name, "tmp") }

// ErrHashMismatch is wrapped by errors of VerifyBackup.
var ErrHashMismatch = errors.New("backup does not have the hash it carries")

// VerifyBackup checks the SHA-256 behind the database in a file that was saved
// from a snapshot stream. hashed is false for a file that carries none, as a
// database copied from a data directory; nothing is checked then.
func VerifyBackup(ctx context.Context, path string, o Options) (hashed bool, err error) {
	o = o.withDefaults()
	f, err := o.FS.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return false, fmt.Errorf("snapshot: open %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("snapshot: stat %s: %w", path, err)
	}
	size := st.Size() - sha256.Size
	if st.Size()%512 != sha256.Size {
		return false, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, io.NewSectionReader(f, 0, size)}); err != nil {
		return true, fmt.Errorf("snapshot: read %s: %w", path, err)
	}
	var want [sha256.Size]byte
	if n, err := f.ReadAt(want[:], size); n < len(want) {
		return true, fmt.Errorf("snapshot: read %s at offset %d: %w", path, size, err)
	}
	if got := h.Sum(nil); !bytes.Equal(got, want[:]) {
		return true, fmt.Errorf("snapshot: %s: %w: expected %x, got %x", path, ErrHashMismatch, want, got)
	}
	return true, nil
}
