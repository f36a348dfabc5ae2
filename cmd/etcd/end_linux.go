package main

import (
	"syscall"
	"unsafe"
)

// setDefaultAction gives a signal its default action, even if the process was started with
// the signal ignored. os/signal cannot do that.
func setDefaultAction(n syscall.Signal) {
	// A sigaction of zeros is SIG_DFL without flags. No architecture has a longer one, and
	// the kernel wants to know that its signal set has 8 bytes.
	var action [32]uint64
	// If it fails, the process exits without the signal.
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}
