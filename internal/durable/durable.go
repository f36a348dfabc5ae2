// Package durable writes, renames and removes files so that a crash at any point
// leaves what was there before or what was to come, never a part of it.
//
// In: a file system, paths in directories that exist, and contents. Out: files and
// directories. Always true: what a call reports as done survives a power loss. A
// call that fails, or that a crash cuts off, leaves each path with its old content or
// its new one; whether the new one is there only the next look tells, as the error
// may be that of the last sync. No content is taken for written before the fsync of
// its file has succeeded, and no name before that of its directory. A fsync that
// failed is never tried again on the same file: the kernel may have forgotten what it
// could not write, so a second attempt begins with a new file. What a crash leaves
// lies under a temporary name that the caller chose, and the next attempt under the
// same name replaces it.
//
// Files that grow by appending are not here: raftlog and the engine have their own
// rules for those.
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
	// Synced, if set, is told how long the fsync of the content took.
	Synced func(took time.Duration)

	fs     vfs.FS
	tmp    string
	closed bool // by Commit or Discard
}

// Create opens a new file under a temporary name, in the directory in which it is to
// stay. What is there under that name is removed. Either Commit or Discard must be
// called; Discard after Commit does nothing.
func Create(fs vfs.FS, tmp string) (*File, error) {
	f, err := fs.Create(tmp, category)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", tmp, err)
	}
	return &File{File: f, fs: fs, tmp: tmp}, nil
}

// Name returns the temporary name.
func (f *File) Name() string { return f.tmp }

// Commit makes the content durable, then gives the file its name, in place of the
// file that had it, and makes that durable. After an error the temporary file is
// gone.
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

// Discard removes the file, unless it has its name already.
func (f *File) Discard() error {
	if f.closed {
		return nil
	}
	f.closed = true
	return errors.Join(f.Close(), removeIfThere(f.fs, f.tmp))
}

// WriteFile gives the file at path another content, or makes it. Its temporary name
// is path with TempSuffix.
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

// Rename moves a file or a directory, in place of a file that has the name. The
// content of what is moved must be durable already.
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

// Remove removes files of one directory, in order. One that is not there is no
// error: a call that was cut off is repeated. A crash may leave any of them.
func Remove(fs vfs.FS, dir string, names ...string) error {
	for _, name := range names {
		if err := removeIfThere(fs, fs.PathJoin(dir, name)); err != nil {
			return err
		}
	}
	return SyncDir(fs, dir)
}

// RemoveAll removes a directory with all that is in it, if it is there. A crash may
// leave a part.
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

// SyncDir makes the names in a directory durable: what was created, renamed and
// removed there.
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

// MkdirAll makes directories, and those above them, for their owner alone.
func MkdirAll(fs vfs.FS, dirs ...string) error {
	for _, dir := range dirs {
		var made []string // dir and those above it that are not there, from below
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
			// An attempt before this one may have been killed before its sync. Where
			// the directory above is another's, it was not made by such an attempt.
			_ = SyncDir(fs, fs.PathDir(dir))
		}
	}
	return nil
}
