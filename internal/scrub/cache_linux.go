package scrub

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// dropCache makes the next read of a range come from the disk: the page cache may hold good
// bytes of a damaged block. Pages that were not written back yet stay. Errors do not matter:
// then the cache is read.
func dropCache(fd uintptr, off, n int64) {
	if fd != vfs.InvalidFd {
		_ = unix.Fadvise(int(fd), off, n, unix.FADV_DONTNEED)
	}
}
