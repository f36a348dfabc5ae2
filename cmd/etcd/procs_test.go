package main

import (
	"runtime"
	"testing"
)

// A server that is given one processor uses two; otherwise it uses what it is given.
func TestSpareProc(t *testing.T) {
	old := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(old) })
	for given, want := range map[int]int{1: 2, 2: 2, 5: 5} {
		runtime.GOMAXPROCS(given)
		spareProc()
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("given %d, it takes %d, want %d", given, got, want)
		}
	}
}
