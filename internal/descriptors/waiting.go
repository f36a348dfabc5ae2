package descriptors

import (
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"quorate/internal/clock"
)

// waiting is a file system in which whatever only looks at files waits for a descriptor.
type waiting struct {
	vfs.FS
	done   <-chan struct{}
	lg     *zap.Logger
	lacked atomic.Bool
}

// Waiting returns fs with calls that wait for a descriptor until done is closed: those that
// open files to read them, and directories to list or sync them. Their callers could not go
// on: raft has no other place to take an entry from, and a name that is in place but not yet
// durable cannot be put there again. Calls that create files do not wait, as their callers
// can do something else meanwhile, or wait by themselves.
func Waiting(fs vfs.FS, done <-chan struct{}, lg *zap.Logger) vfs.FS {
	return &waiting{FS: fs, done: done, lg: lg}
}

func (w *waiting) Unwrap() vfs.FS { return w.FS }

func (w *waiting) Open(name string, opts ...vfs.OpenOption) (f vfs.File, err error) {
	w.wait(name, func() error { f, err = w.FS.Open(name, opts...); return err })
	return f, err
}

func (w *waiting) OpenDir(name string) (f vfs.File, err error) {
	w.wait(name, func() error { f, err = w.FS.OpenDir(name); return err })
	return f, err
}

func (w *waiting) List(name string) (names []string, err error) {
	w.wait(name, func() error { names, err = w.FS.List(name); return err })
	return names, err
}

// wait calls open until it does not fail for lack of descriptors.
func (w *waiting) wait(name string, open func() error) {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := open()
		if !Exhausted(err) {
			if err == nil && w.lacked.Load() && w.lacked.CompareAndSwap(true, false) {
				w.lg.Info("there are file descriptors again", zap.String("path", name))
			}
			return
		}
		if w.lacked.CompareAndSwap(false, true) {
			w.lg.Error("too many open files: waiting until some are closed; "+WayOut, zap.String("path", name), zap.Error(err))
		}
		t := clock.NewTimer(clock.System, pause)
		select {
		case <-t.C:
		case <-w.done:
			t.Stop()
			return
		}
	}
}
