package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// lockMemory keeps all memory of the process, now and later, out of swap.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE); err != nil {
		return fmt.Errorf("--memory-mlock: mlockall: %w; is the limit on locked memory (ulimit -l, LimitMEMLOCK=) high enough?", err)
	}
	return nil
}
