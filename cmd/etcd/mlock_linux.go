package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// lockMemory locks all current and future memory of the process, so that it is never
// swapped out.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE); err != nil {
		return fmt.Errorf("--memory-mlock: mlockall: %w; is the limit on locked memory (ulimit -l, LimitMEMLOCK=) high enough?", err)
	}
	return nil
}
