package pebble

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"quorate/internal/clock"
	"quorate/internal/descriptors"
	"quorate/internal/engine"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// lacking reports whether a call failed for lack of something that may be there later: space
// on the disk, or a file descriptor.
func lacking(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || descriptors.Exhausted(err)
}

// patientFS waits when the disk is full: a write that fails for lack of space is
// reported and retried until there is space. So a full disk stalls flushes, and in the
// end writers, but fails none. Pebble itself would retry a failed flush without a
// pause, and stop for good if a write to the manifest failed.
//
// It does the same when there is no file descriptor for a new file. A file that is opened to
// be read gets less patience: readers that wait may have the files that others wait for.
// Then the read fails, which harms nobody else.
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
	onSpace func(lack error)
	full    atomic.Bool           // a write waits
	why     atomic.Pointer[error] // for what it waits
	broken  atomic.Bool           // a write failed permanently
	hold    atomic.Bool           // the next attempt waits
	pace    *pacer
}

// readPatience is how long opening a file for a read waits for a file descriptor. Only tests
// change it.
var readPatience = 5 * time.Second

// brokenPause is the pause between attempts after a failure. Only tests change it.
var brokenPause = time.Second

// failed slows down the attempts that follow a failed flush or compaction.
func (p *patientFS) failed(err error) {
	if lacking(err) {
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

// lack returns the error of the write that waits.
func (p *patientFS) lack() error {
	if why := p.why.Load(); why != nil {
		return *why
	}
	return syscall.ENOSPC
}

// retry runs f until it does not fail for lack of space or descriptors, or the engine
// closes.
//
// opens says that f needs a descriptor. Only its success shows that there are some again:
// files that are open already can be written all the time.
func (p *patientFS) retry(opens bool, f func() error) error {
	if p.broken.Load() || p.hold.Swap(false) {
		p.pause(brokenPause)
	}
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := f()
		if !lacking(err) {
			if p.full.Load() && err == nil && (opens || !descriptors.Exhausted(p.lack())) && p.full.CompareAndSwap(true, false) {
				p.onSpace(nil)
			}
			return err
		}
		p.why.Store(&err)
		if !p.full.Swap(true) {
			p.report(err)
			p.onSpace(err)
		}
		if !p.pause(pause) {
			return err
		}
	}
}

// Open opens a file to be read. It waits for a descriptor, but not forever.
func (p *patientFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	var waited time.Duration
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		f, err := p.FS.Open(name, opts...)
		if !descriptors.Exhausted(err) {
			return f, err
		}
		if waited >= readPatience {
			return nil, fmt.Errorf("no file descriptor to read with; %s: %w", descriptors.WayOut, err)
		}
		if !p.pause(pause) {
			return nil, fmt.Errorf("%w: %v", engine.ErrClosed, err) // nobody is to try again
		}
		waited += pause
	}
}

// OpenDir is called before a directory is synced, where a failure would be final.
func (p *patientFS) OpenDir(name string) (f vfs.File, err error) {
	err = p.retry(true, func() error {
		f, err = p.FS.OpenDir(name)
		return err
	})
	return f, err
}

func (p *patientFS) List(dir string) (names []string, err error) {
	err = p.retry(true, func() error {
		names, err = p.FS.List(dir)
		return err
	})
	return names, err
}

func (p *patientFS) Lock(name string) (lock io.Closer, err error) {
	err = p.retry(true, func() error {
		lock, err = p.FS.Lock(name)
		return err
	})
	return lock, err
}

func (p *patientFS) Unwrap() vfs.FS { return p.FS }

func (p *patientFS) file(open func() (vfs.File, error)) (f vfs.File, err error) {
	err = p.retry(true, func() error {
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
	return p.retry(false, func() error { return p.FS.Link(oldname, newname) })
}

func (p *patientFS) Rename(oldname, newname string) error {
	return p.retry(false, func() error { return p.FS.Rename(oldname, newname) })
}

func (p *patientFS) MkdirAll(dir string, perm os.FileMode) error {
	return p.retry(false, func() error { return p.FS.MkdirAll(dir, perm) })
}

type patientFile struct {
	vfs.File
	p *patientFS
}

func (f *patientFile) Write(b []byte) (n int, err error) {
	err = f.p.retry(false, func() error {
		m, err := f.File.Write(b[n:])
		n += m
		return err
	})
	return n, err
}

func (f *patientFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.p.retry(false, func() error {
		m, err := f.File.WriteAt(b[n:], off+int64(n))
		n += m
		return err
	})
	return n, err
}

func (f *patientFile) Preallocate(offset, length int64) error {
	return f.p.retry(false, func() error { return f.File.Preallocate(offset, length) })
}
