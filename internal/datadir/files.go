package datadir

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/metrics"
)

// saveStream writes r to tmp and then gives it the path that name returns, durable
// as a whole or not there. What has come so far of a stream that breaks off is
// removed.
func saveStream(ctx context.Context, fs vfs.FS, tmp string, r io.Reader, name func() string) error {
	f, err := fs.Create(tmp, fileCategory)
	if err != nil {
		return fmt.Errorf("create %s: %w", tmp, err)
	}
	_, err = io.Copy(f, contextReader{ctx, r})
	if err == nil {
		start := time.Now()
		err = f.Sync()
		metrics.SnapDBFsyncDurationSeconds.Observe(time.Since(start).Seconds())
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fs.Rename(tmp, name())
	}
	if err == nil {
		err = syncDir(fs, fs.PathDir(tmp))
	}
	if err != nil {
		fs.Remove(tmp)
		return fmt.Errorf("save %s: %w", tmp, err)
	}
	return nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
