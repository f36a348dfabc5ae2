//go:build !linux

package main

import "errors"

// lockMemory is supported on Linux only, as in etcd.
func lockMemory() error { return errors.New("--memory-mlock works on Linux only") }
