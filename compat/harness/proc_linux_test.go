package harness

import (
	"errors"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	// The command name may contain spaces and parentheses; fields 14 and 15 are 250 and 150 ticks.
	const line = "77 (a) b (c) S 1 2 3 0 -1 4 5 6 7 8 250 150 0 0 20 0 9 0 100"
	got, err := parseStat(line)
	if want := 4 * time.Second; err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "77 cmd S 1 2", "77 (cmd) S 1 2", "77 (cmd) S 1 2 3 0 -1 4 5 6 7 8 x 150 0"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\nThreads:\t3\n")
	if want := (Memory{Resident: 1 << 20, Peak: 2 << 20}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := parseStatus("Name:\tx\n"); err == nil {
		t.Error("a status without sizes: got no error")
	}
}

func TestFreeAddrsAreDistinct(t *testing.T) {
	addrs, err := FreeAddrs(8)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, a := range addrs {
		if seen[a] {
			t.Errorf("address %s twice", a)
		}
		seen[a] = true
	}
}

// A process that exits before it is ready is reported as such and leaves its log.
func TestStartSingleReportsExit(t *testing.T) {
	_, err := StartSingle(t.Context(), Config{Binary: "/bin/false", Dir: t.TempDir()})
	if !errors.Is(err, ErrExited) {
		t.Errorf("got %v, want %v", err, ErrExited)
	}
}
