package logging

import (
	"fmt"
	"io"
	"sync"
	"time"

	"quorate/internal/clock"
)

// Number of lines that a Limited passes on in a second before it drops lines.
const linesPerSecond = 20

// Limited is a writer of log lines, one per Write, that drops lines above a rate: an
// attacker can cause a line for every frame. In the next second below the rate it writes
// how many lines are missing. Safe for concurrent use.
type Limited struct {
	mu      sync.Mutex
	w       io.Writer
	now     func() time.Time
	second  time.Time // start of the current second
	written int       // lines in it
	dropped int       // dropped since the last report
}

// NewLimited returns a Limited over w.
func NewLimited(w io.Writer) *Limited { return &Limited{w: w, now: clock.Now} }

// Write writes or drops a line. A dropped line counts as written.
func (l *Limited) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.now(); now.Sub(l.second) >= time.Second {
		l.second, l.written = now, 0
	}
	if l.written >= linesPerSecond {
		l.dropped++
		return len(line), nil
	}
	l.written++
	if l.dropped > 0 {
		note := fmt.Sprintf("%s WARNING: %d lines like the following were left out\n", l.now().Format("2006/01/02 15:04:05"), l.dropped)
		l.dropped = 0
		if _, err := l.w.Write(append([]byte(note), line...)); err != nil {
			return 0, err
		}
		return len(line), nil
	}
	return l.w.Write(line)
}
