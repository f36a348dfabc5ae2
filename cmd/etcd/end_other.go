//go:build !linux

package main

import "syscall"

// setDefaultAction does nothing here: there is no way to it without C. A process that was
// started with the signal ignored exits without the signal.
func setDefaultAction(syscall.Signal) {}
