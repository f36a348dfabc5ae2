package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"
)

// endWait is how long the signal that ends the process may take to arrive.
const endWait = time.Second

// end raises the signal again with its default action, so that the parent process sees that
// the signal ended this process. Process 1 of a container has no default action and exits
// normally.
//
// Whatever happens to the signal, the process must end, because it no longer serves. If the
// signal does not end it, the exit code is the one that a shell shows for the signal.
func end(s os.Signal) int {
	if os.Getpid() == 1 {
		return 0
	}
	n, ok := s.(syscall.Signal)
	if !ok {
		return 1
	}
	// Reset alone would restore what the process was started with: a shell without job
	// control starts background processes with SIGINT ignored.
	signal.Reset(n)
	setDefaultAction(n)
	if syscall.Kill(os.Getpid(), n) == nil {
		time.Sleep(endWait)
	}
	return 128 + int(n)
}
