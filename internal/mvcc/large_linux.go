package mvcc

import "golang.org/x/sys/unix"

// mapMemory returns n bytes of memory outside the heap, nil if there is none.
func mapMemory(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // without them it is merely slower
	return b
}

// hugePage is the size of a huge page on the usual machines.
const hugePage = 2 << 20

// dropMemory returns what b has beyond n bytes, and the end of their huge page, to the
// system. It stays mapped, and is zero. It reports false if it cannot: memory may be locked.
func dropMemory(b []byte, n int) bool {
	from := (n + hugePage - 1) / hugePage * hugePage
	return from >= len(b) || unix.Madvise(b[from:], unix.MADV_DONTNEED) == nil
}

func unmapMemory(b []byte) { _ = unix.Munmap(b) }
