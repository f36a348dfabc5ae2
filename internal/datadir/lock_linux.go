package datadir

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// lockFile takes the lock that etcd holds on its database while it runs. A file
// without a descriptor (in-memory file system) has no lock.
func lockFile(f vfs.File) error {
	if f.Fd() == vfs.InvalidFd {
		return nil
	}
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return ErrInUse
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOSYS):
		return nil // not supported by this file system; etcd does not start on it either
	}
	return err
}
