package raftlog

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// directory is the place of a log: its files, by segment, and the lock on it.
type directory struct {
	fs   vfs.FS
	path string
	lg   *zap.Logger
	file vfs.File  // the directory itself
	lock io.Closer // nil if the directory itself is locked
}

// removeEmptyDir removes the old directory, so that the new one can be
// renamed to its name. The old one holds no log, and may hold nothing else
// but leftovers of preallocation.
func (d *directory) removeEmptyDir() error {
	names, err := d.fs.List(d.path)
	if isNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("raftlog: list %s: %w", d.path, err)
	}
	for _, n := range names {
		if path.Ext(n) != ".tmp" {
			return fmt.Errorf("raftlog: create %s: directory holds %q but no log", d.path, n)
		}
	}
	if err := d.fs.RemoveAll(d.path); err != nil {
		return fmt.Errorf("raftlog: remove %s: %w", d.path, err)
	}
	return nil
}

// acquire locks the directory for this log.
func (d *directory) acquire() error {
	f, err := d.fs.OpenDir(d.path)
	if err != nil {
		return fmt.Errorf("raftlog: open %s: %w", d.path, err)
	}
	d.file = f
	done, err := lockDir(f)
	if err == nil && !done {
		d.lock, err = d.fs.Lock(d.fs.PathJoin(d.path, "lock.tmp"))
		if err != nil {
			err = fmt.Errorf("%w (%v)", ErrInUse, err)
		}
	}
	if err != nil {
		return fmt.Errorf("raftlog: lock %s: %w", d.path, err)
	}
	return nil
}

func (d *directory) segment(s segment) string { return d.fs.PathJoin(d.path, s.name()) }

// removeSpares removes segments that were being prepared when the process
// exited.
func (d *directory) removeSpares() {
	for i := range spareNames {
		path := d.fs.PathJoin(d.path, spareName(i))
		if err := d.fs.Remove(path); err != nil && !isNotExist(err) {
			d.lg.Warn("failed to remove an unused log segment", zap.String("path", path), zap.Error(err))
		}
	}
}

// removeRemainders removes segments before a gap. The log does not need them,
// as it is complete after the gap, but etcd would fail at the gap.
func (d *directory) removeRemainders(segs []segment) {
	for _, s := range segs {
		d.lg.Warn("removing a log segment before a gap", zap.String("path", d.segment(s)))
		if err := d.fs.Remove(d.segment(s)); err != nil && !isNotExist(err) {
			d.lg.Warn("failed to remove a log segment", zap.String("path", d.segment(s)), zap.Error(err))
		}
	}
}

// consecutive returns the newest segments without a gap in their sequence.
// Older ones are left over from a removal.
func consecutive(segs []segment) []segment {
	i := len(segs) - 1
	for i > 0 && segs[i-1].seq+1 == segs[i].seq {
		i--
	}
	return segs[i:]
}

// listSegments returns the segments of the directory by sequence number. Other
// files are ignored.
func listSegments(fs vfs.FS, dir string) ([]segment, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, fmt.Errorf("raftlog: list %s: %w", dir, err)
	}
	var segs []segment
	for _, n := range names {
		if s, ok := parseName(n); ok {
			segs = append(segs, s)
		}
	}
	slices.SortFunc(segs, func(a, b segment) int {
		switch {
		case a.seq != b.seq && a.seq < b.seq:
			return -1
		case a.seq != b.seq:
			return 1
		}
		return strings.Compare(a.name(), b.name())
	})
	return segs, nil
}

// release closes the directory and releases the lock.
func (d *directory) release() error {
	var err error
	if d.lock != nil {
		err = d.lock.Close()
		d.lock = nil
	}
	if d.file != nil {
		err = errors.Join(err, d.file.Close())
		d.file = nil
	}
	return err
}
