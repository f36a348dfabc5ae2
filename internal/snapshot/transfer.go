package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/metrics"
)

const dbSuffix = ".snap.db"

// DBName returns the name under which a database received from a peer is kept
// until it is installed.
func DBName(index uint64) string { return fmt.Sprintf("%016x%s", index, dbSuffix) }

// SaveDB writes the database that body carries into dir as DBName(index),
// durably and whole, and returns its length. A file of that name that is there
// already is kept: it was received before. The content is not looked at.
func SaveDB(ctx context.Context, dir string, index uint64, body io.Reader, o Options) (int64, error) {
	o = o.withDefaults()
	start := time.Now()
	path := o.FS.PathJoin(dir, DBName(index))
	tmp := tmpPath(o.FS, dir)
	n, err := saveBody(ctx, o.FS, tmp, body)
	if err != nil {
		return n, fmt.Errorf("snapshot: save %s: %w", path, errors.Join(err, removeIfThere(o.FS, tmp)))
	}
	if _, err := o.FS.Stat(path); err == nil {
		return n, removeIfThere(o.FS, tmp)
	} else if !errors.Is(err, os.ErrNotExist) {
		return n, fmt.Errorf("snapshot: stat %s: %w", path, errors.Join(err, removeIfThere(o.FS, tmp)))
	}
	if err := publish(o.FS, tmp, path); err != nil {
		return n, fmt.Errorf("snapshot: save %s: %w", path, err)
	}
	metrics.SnapDBSaveTotalDurationSeconds.Observe(time.Since(start).Seconds())
	return n, nil
}

func saveBody(ctx context.Context, fs vfs.FS, path string, body io.Reader) (int64, error) {
	f, err := fs.Create(path, category)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, contextReader{ctx, body})
	if err == nil {
		start := time.Now()
		err = f.Sync()
		metrics.SnapDBFsyncDurationSeconds.Observe(time.Since(start).Seconds())
	}
	return n, errors.Join(err, f.Close())
}

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

// Clean removes what a crash may have left in dir: temporary files, and
// databases received for an index below keep, which nothing will ask for.
func Clean(dir string, keep uint64, o Options) error {
	o = o.withDefaults()
	names, err := o.FS.List(dir)
	if err != nil {
		return fmt.Errorf("snapshot: list %s: %w", dir, err)
	}
	for _, n := range names {
		received := strings.HasSuffix(n, dbSuffix) && len(n) == 16+len(dbSuffix) && n < DBName(keep)
		if !received && !strings.HasPrefix(n, "tmp") && !strings.HasPrefix(n, "db.tmp") {
			continue
		}
		if err := removeIfThere(o.FS, o.FS.PathJoin(dir, n)); err != nil {
			return fmt.Errorf("snapshot: clean %s: %w", dir, err)
		}
	}
	return nil
}

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
