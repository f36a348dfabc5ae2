package pebble

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"quorate/internal/clock"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var errFull error = syscall.ENOSPC

// patientFS waits when the disk is full: a write that fails for lack of space is
// reported and retried until there is space. So a full disk stalls flushes, and in the
// end writers, but fails none. Pebble itself would retry a failed flush without a
// pause, and stop for good if a write to the manifest failed.
//
// Other failures are not retried here: the owner is notified and stops the member.
// Until then Pebble keeps retrying, and patientFS limits that to once a second. The
// same holds for a sync that fails for lack of space. A sync must not be repeated: the
// kernel may have dropped its pages.
type patientFS struct {
	vfs.FS
	closing <-chan struct{} // ends waits
	giveUp  <-chan struct{} // ends waits as well
	report  func(error)
	onSpace func(full bool)
	full    atomic.Bool
	broken  atomic.Bool // a write failed permanently
	hold    atomic.Bool // the next attempt waits
	pace    *pacer
}

// brokenPause is the pause between attempts after a failure. Only tests change it.
var brokenPause = time.Second

// failed slows down the attempts that follow a failed flush or compaction.
func (p *patientFS) failed(err error) {
	if errors.Is(err, syscall.ENOSPC) {
		p.hold.Store(true)
	} else {
		p.broken.Store(true)
	}
}

// pause waits for d. It returns false if the engine is closing or gives up.
func (p *patientFS) pause(d time.Duration) bool {
	t := clock.NewTimer(clock.System, d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.closing:
	case <-p.giveUp:
	}
	clock.Pause(20 * time.Millisecond) // Pebble retries at once until it is closed
	return false
}

// retry runs f until it does not fail for lack of space, or the engine closes.
func (p *patientFS) retry(f func() error) error {
	if p.broken.Load() || p.hold.Swap(false) {
		p.pause(brokenPause)
	}
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := f()
		if !errors.Is(err, syscall.ENOSPC) {
			if p.full.Load() && err == nil && p.full.CompareAndSwap(true, false) {
				p.onSpace(false)
			}
			return err
		}
		if !p.full.Swap(true) {
			p.report(err)
			p.onSpace(true)
		}
		if !p.pause(pause) {
			return err
		}
	}
}

func (p *patientFS) Unwrap() vfs.FS { return p.FS }

func (p *patientFS) file(open func() (vfs.File, error)) (f vfs.File, err error) {
	err = p.retry(func() error {
		f, err = open()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &patientFile{f, p}, nil
}

func (p *patientFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.file(func() (vfs.File, error) { return p.FS.Create(name, c) })
	return gather(name, p.pace, f, err)
}

func (p *patientFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return p.file(func() (vfs.File, error) { return p.FS.OpenReadWrite(name, c, opts...) })
}

func (p *patientFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return p.file(func() (vfs.File, error) { return p.FS.ReuseForWrite(oldname, newname, c) })
}

func (p *patientFS) Link(oldname, newname string) error {
	return p.retry(func() error { return p.FS.Link(oldname, newname) })
}

func (p *patientFS) Rename(oldname, newname string) error {
	return p.retry(func() error { return p.FS.Rename(oldname, newname) })
}

func (p *patientFS) MkdirAll(dir string, perm os.FileMode) error {
	return p.retry(func() error { return p.FS.MkdirAll(dir, perm) })
}

type patientFile struct {
	vfs.File
	p *patientFS
}

func (f *patientFile) Write(b []byte) (n int, err error) {
	err = f.p.retry(func() error {
		m, err := f.File.Write(b[n:])
		n += m
		return err
	})
	return n, err
}

func (f *patientFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.p.retry(func() error {
		m, err := f.File.WriteAt(b[n:], off+int64(n))
		n += m
		return err
	})
	return n, err
}

func (f *patientFile) Preallocate(offset, length int64) error {
	return f.p.retry(func() error { return f.File.Preallocate(offset, length) })
}
