package datadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/durable"
	"quorate/internal/metrics"
)

// saveStream writes r to tmp and then renames it to the path that name returns:
// after a crash the complete, durable file is there, or none. If the stream breaks
// off, the temporary file is removed.
func saveStream(ctx context.Context, fs vfs.FS, tmp string, r io.Reader, name func() string) error {
	f, err := durable.Create(fs, tmp)
	if err != nil {
		return err
	}
	f.Synced = func(took time.Duration) { metrics.SnapDBFsyncDurationSeconds.Observe(took.Seconds()) }
	if _, err = io.Copy(f, contextReader{ctx, r}); err == nil {
		err = f.Commit(name())
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", tmp, errors.Join(err, f.Discard()))
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
