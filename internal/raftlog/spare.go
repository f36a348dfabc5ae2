package raftlog

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/crash"
)

// spare is the next segment, prepared while the current one is written.
type spare struct {
	fs   vfs.FS
	path string
	done chan struct{} // closed when file and err are set
	file vfs.File
	err  error
}

// prepareSpare starts creating the next segment in the background.
func (w *writer) prepareSpare() {
	if w.opts.NoBackground {
		return
	}
	w.spare = w.newSpare()
	spare := w.spare
	go crash.Guarded(func() { spare.make(w.opts.SegmentBytes) })()
}

// newSpare alternates between two names, as etcd does, so that a new file
// never has the name that the last renamed one had.
func (w *writer) newSpare() *spare {
	name := spareName(w.spareSeq % spareNames)
	w.spareSeq++
	return &spare{fs: w.dir.fs, path: w.dir.fs.PathJoin(w.dir.path, name), done: make(chan struct{})}
}

const spareNames = 2

func spareName(i int) string { return fmt.Sprintf("%d.tmp", i) }

func (s *spare) make(size int64) {
	s.file, s.err = allocate(s.fs, s.path, size)
	close(s.done)
}

// discard removes an unused spare.
func (s *spare) discard() {
	<-s.done
	if s.err == nil {
		_ = s.file.Close()
		_ = s.fs.Remove(s.path)
	}
}

// takeSpare returns the next segment. If it could not be created in the
// background, takeSpare retries once: the disk may have room again.
func (w *writer) takeSpare() (vfs.File, string, error) {
	s := w.spare
	w.spare = nil
	if s != nil {
		<-s.done
	}
	if s == nil || s.err != nil {
		s = w.newSpare()
		s.make(w.opts.SegmentBytes)
	}
	return s.file, s.path, s.err
}
