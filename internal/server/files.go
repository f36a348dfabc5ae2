package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/metrics"
)

const fileCategory = vfs.DiskWriteCategory("member")

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

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

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
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
