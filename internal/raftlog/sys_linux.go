package raftlog

import (
	"errors"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// The functions below use what a file on disk offers beyond vfs.File. On a
// file without a descriptor (the in-memory file system) they do nothing, and
// the log is correct without them.

// setSize grows or cuts the file to size bytes.
func setSize(f vfs.File, size int64) error {
	if f.Fd() == vfs.InvalidFd {
		return nil
	}
	return unix.Ftruncate(int(f.Fd()), size)
}

// setPrivate makes the file readable by its owner only.
func setPrivate(f vfs.File) error {
	if f.Fd() == vfs.InvalidFd {
		return nil
	}
	return unix.Fchmod(int(f.Fd()), 0o600)
}

// lockSegment takes the lock that etcd takes on a segment it writes to, so that
// etcd and Quorate never use the same log at once.
func lockSegment(f vfs.File) error {
	if f.Fd() == vfs.InvalidFd {
		return nil
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return ErrInUse
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOTSUP):
		return nil // not supported by this kernel or file system; the directory lock remains
	}
	return err
}

// lockDir locks the directory against a second log. done is false if the
// directory has no descriptor to lock.
func lockDir(d vfs.File) (done bool, err error) {
	if d.Fd() == vfs.InvalidFd {
		return false, nil
	}
	err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return true, ErrInUse
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOSYS):
		return false, nil
	}
	return true, err
}

// nextData returns the offset of the first byte at or after off that is not
// in a hole, or size if only a hole follows. The result may be too low,
// never too high.
func nextData(f vfs.File, off, size int64) int64 {
	if f.Fd() == vfs.InvalidFd {
		return off
	}
	n, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size
	}
	if err != nil || n < off {
		return off
	}
	return n
}

// reserveUnsupported reports whether Preallocate failed only because the file system
// does not support it.
func reserveUnsupported(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EINTR) || errors.Is(err, os.ErrInvalid)
}
