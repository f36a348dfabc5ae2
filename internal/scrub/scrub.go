// Package scrub reads files at rest for a check of their bytes, so slowly that clients do
// not notice it.
//
// In: paths of files, and a bound on the bytes per second. Out: their bytes, as they are
// on the disk and not as the page cache has them, and a list of what is damaged. Always
// true: no more than the bound is read per second, on average; nothing is written; the
// list of damage is bounded.
//
// What the bytes must be is the business of the packages that wrote them: raftlog, the
// engine and datadir.
package scrub

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/clock"
)

// Damage is a part of a file whose bytes have changed since they were written.
type Damage struct {
	File   string
	Offset int64 // of the damaged part; -1 if unknown
	Err    error
}

func (d Damage) String() string {
	if d.Offset < 0 {
		return fmt.Sprintf("%s: %v", d.File, d.Err)
	}
	return fmt.Sprintf("%s at offset %d: %v", d.File, d.Offset, d.Err)
}

// maxDamage bounds the parts that a Reader records.
const maxDamage = 64

// Reader is one scrub. It is not safe for concurrent use.
type Reader struct {
	FS             vfs.FS
	Clock          clock.Clock
	BytesPerSecond int64 // 0: no bound
	// Progress, unless nil, is called after each read.
	Progress func()

	Files  int      // read to the end
	Bytes  int64    // read so far
	Found  []Damage // at most maxDamage
	Damage int      // damaged parts, including those that are not in Found

	began time.Time
	ctx   context.Context
}

// Begin starts the scrub, which ctx may stop.
func (r *Reader) Begin(ctx context.Context) { r.ctx, r.began = ctx, r.Clock.Now() }

// Report records a damaged part.
func (r *Reader) Report(d Damage) {
	r.Damage++
	if len(r.Found) < maxDamage {
		r.Found = append(r.Found, d)
	}
}

// File runs check on the file at path. A file that does not exist any more is skipped: it
// was replaced since the caller has listed it. Errors are those of the file system, of ctx
// and of check; damage is not an error.
func (r *Reader) File(path string, check func(f *File) error) (err error) {
	f, err := r.FS.Open(path, vfs.SequentialReadsOption)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("scrub: open %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("scrub: stat %s: %w", path, err)
	}
	if err := check(&File{File: f, Path: path, Size: st.Size(), r: r}); err != nil {
		return err
	}
	r.Files++
	return nil
}

// pace waits until reading n more bytes keeps within the bound.
func (r *Reader) pace(n int) error {
	if err := r.ctx.Err(); err != nil {
		return context.Cause(r.ctx)
	}
	if r.BytesPerSecond > 0 {
		due := time.Duration(float64(r.Bytes) / float64(r.BytesPerSecond) * float64(time.Second))
		if wait := due - r.Clock.Now().Sub(r.began); wait > 0 {
			t := clock.NewTimer(r.Clock, wait)
			defer t.Stop()
			select {
			case <-t.C:
			case <-r.ctx.Done():
				return context.Cause(r.ctx)
			}
		}
	}
	r.Bytes += int64(n)
	if r.Progress != nil {
		r.Progress()
	}
	return nil
}

// File is an open file of a scrub. Its ReadAt is paced.
type File struct {
	vfs.File
	Path string
	Size int64 // when it was opened
	Last int64 // offset of the newest read

	r *Reader
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.r.pace(len(p)); err != nil {
		return 0, err
	}
	f.Last = off
	dropCache(f.Fd(), off, int64(len(p)))
	return f.File.ReadAt(p, off)
}

// Stopped reports whether an error is that of the end of the scrub's context, and so says
// nothing about the file.
func (r *Reader) Stopped() bool { return r.ctx.Err() != nil }
