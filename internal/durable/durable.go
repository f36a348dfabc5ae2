// Package durable writes, renames and removes files so that a crash at any point
// leaves either the old or the new content, never a part of it.
//
// In: a file system, paths in existing directories, and contents. Out: files and
// directories. Always true: what a call reports as done survives a power loss. A call
// that fails, or that a crash interrupts, leaves each path with its old or its new
// content. Which of the two must be read back, as the error may be that of the last
// sync. Content counts as written only after the fsync of its file has succeeded, and
// a name only after that of its directory. A failed fsync is never retried on the same
// file: the kernel may have dropped the pages that it could not write, so a second
// attempt begins with a new file. A crash may leave a file under the temporary name
// that the caller chose; the next attempt under the same name replaces it.
//
// Files that grow by appending are not handled here: raftlog and the engine have their
// own rules for those.
package durable

import (
	"errors"
	"fmt"
	"os"
	"time"

	"quorate/internal/clock"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const category = vfs.DiskWriteCategory("durable")

// TempSuffix ends the temporary names that WriteFile uses.
const TempSuffix = ".tmp"

// File is a file that is being written under a temporary name.
type File struct {
	vfs.File
	// Synced, if set, is called with the duration of the fsync of the content.
	Synced func(took time.Duration)

	fs     vfs.FS
	tmp    string
	closed bool // by Commit or Discard
}

// Create opens a new file under a temporary name, in the directory in which it will
// stay. An existing file of that name is removed. The caller must call Commit or
// Discard; Discard after Commit does nothing.
func Create(fs vfs.FS, tmp string) (*File, error) {
	f, err := fs.Create(tmp, category)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", tmp, err)
	}
	return &File{File: f, fs: fs, tmp: tmp}, nil
}

// Name returns the temporary name.
func (f *File) Name() string { return f.tmp }

// Commit makes the content durable, renames the file to path, replacing an existing
// file, and makes that durable. After an error the temporary file is removed.
func (f *File) Commit(path string) error {
	if f.closed {
		return fmt.Errorf("commit %s: %w", path, os.ErrClosed)
	}
	start := clock.Now()
	err := f.Sync()
	if f.Synced != nil {
		f.Synced(clock.Since(start))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", f.tmp, err), f.Discard())
	}
	f.closed = true
	if err := f.Close(); err != nil {
		return errors.Join(fmt.Errorf("close %s: %w", f.tmp, err), removeIfThere(f.fs, f.tmp))
	}
	if err := f.fs.Rename(f.tmp, path); err != nil {
		return errors.Join(fmt.Errorf("rename %s to %s: %w", f.tmp, path, err), removeIfThere(f.fs, f.tmp))
	}
	return SyncDir(f.fs, f.fs.PathDir(path))
}

// Discard removes the file, unless it was committed.
func (f *File) Discard() error {
	if f.closed {
		return nil
	}
	f.closed = true
	return errors.Join(f.Close(), removeIfThere(f.fs, f.tmp))
}

// WriteFile replaces the content of the file at path, or creates it. The temporary
// name is path with TempSuffix.
func WriteFile(fs vfs.FS, path string, content []byte) error {
	f, err := Create(fs, path+TempSuffix)
	if err != nil {
		return err
	}
	return f.write(path, content)
}

func (f *File) write(path string, content []byte) error {
	if _, err := f.Write(content); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), f.Discard())
	}
	return f.Commit(path)
}

// Rename moves a file or a directory, replacing an existing file. The content must
// already be durable.
func Rename(fs vfs.FS, from, to string) error {
	if err := fs.Rename(from, to); err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	// The new name first: a crash in between leaves both names, not neither.
	err := SyncDir(fs, fs.PathDir(to))
	if err == nil && fs.PathDir(from) != fs.PathDir(to) {
		err = SyncDir(fs, fs.PathDir(from))
	}
	return err
}

// Remove removes files of one directory, in order. A missing file is not an error, so
// an interrupted call can be repeated. A crash may leave any of them.
func Remove(fs vfs.FS, dir string, names ...string) error {
	for _, name := range names {
		if err := removeIfThere(fs, fs.PathJoin(dir, name)); err != nil {
			return err
		}
	}
	return SyncDir(fs, dir)
}

// RemoveAll removes a directory and its content, if it exists. A crash may leave a
// part.
func RemoveAll(fs vfs.FS, path string) error {
	if err := fs.RemoveAll(path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := SyncDir(fs, fs.PathDir(path)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func removeIfThere(fs vfs.FS, path string) error {
	if err := fs.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// SyncDir makes the names in a directory durable: files created, renamed and removed
// there.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// MkdirAll creates directories and their parents, accessible by their owner only.
func MkdirAll(fs vfs.FS, dirs ...string) error {
	for _, dir := range dirs {
		var made []string // dir and its missing parents, deepest first
		for p := dir; ; p = fs.PathDir(p) {
			if _, err := fs.Stat(p); err == nil || p == fs.PathDir(p) {
				break
			}
			made = append(made, p)
		}
		if err := fs.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create directory %s: %w", dir, err)
		}
		for _, p := range made {
			if err := SyncDir(fs, fs.PathDir(p)); err != nil {
				return err
			}
		}
		if len(made) == 0 {
			// An earlier attempt may have been killed before its sync. The error is ignored: a
			// parent directory that belongs to another user was not created by such an attempt.
			_ = SyncDir(fs, fs.PathDir(dir))
		}
	}
	return nil
}
