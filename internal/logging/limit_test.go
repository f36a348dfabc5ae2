package logging

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestLimited(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	l := NewLimited(&out)
	l.now = func() time.Time { return now }
	flood := func(n int) []string {
		out.Reset()
		for i := range n {
			if k, err := fmt.Fprintf(l, "line %d\n", i); err != nil || k == 0 {
				t.Fatal(k, err)
			}
		}
		return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	}
	if got := flood(1000); len(got) != linesPerSecond || got[0] != "line 0" || got[len(got)-1] != "line 19" {
		t.Errorf("%d lines of a flood: %q", len(got), got)
	}
	now = now.Add(999 * time.Millisecond)
	if got := flood(1); got[0] != "" {
		t.Errorf("in the same second: %q", got)
	}
	now = now.Add(time.Millisecond)
	if got := flood(2); len(got) != 3 || !strings.Contains(got[0], "981 lines like the following were left out") || got[1] != "line 0" || got[2] != "line 1" {
		t.Errorf("in the next second: %q", got)
	}
}
