package main

import "runtime"

// leastProcs is how many goroutines must be able to run at a time. While one of them
// waits for the disk in fdatasync, requests have to gather for the next write of the
// log: with a single processor, Go's runtime gives that to nobody until the sync is
// over or has taken long, so each write is a group of one. Measured with a server on
// one CPU: 19,000 puts a second instead of 5,000.
const leastProcs = 2

// spareProc raises GOMAXPROCS where it would be 1: on machines and in containers with
// one CPU, and also when the environment says so, since what is meant by that is the
// share of the machine, and this costs none.
func spareProc() {
	if runtime.GOMAXPROCS(0) < leastProcs {
		runtime.GOMAXPROCS(leastProcs)
	}
}
