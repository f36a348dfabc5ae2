package pebble

import (
	"runtime"
	"sync/atomic"
	"time"

	"quorate/internal/clock"

	"github.com/cockroachdb/pebble/v2"
)

// pacer makes the writers of tables, which are flushes and compactions, pause as long as they
// work while they could occupy all CPUs and others want to write. Go looks at the network only
// when a CPU has nothing else to do, or every 10 ms, so that a request would wait that long
// beside writers that never do. Pebble's own pacing limits the rate of deletions alone. Safe
// for concurrent use.
type pacer struct {
	writers   atomic.Int64 // tables being written; two goroutines work for each
	committed atomic.Int64 // when the last batch was committed, in Unix nanoseconds
	waiting   atomic.Int64 // tables of level 0, which compactions have not reached
	behind    func() bool  // flushes cannot keep up
	pause     func(time.Duration)
}

func newPacer(behind func() bool) *pacer { return &pacer{behind: behind, pause: clock.Pause} }

const (
	// maxPause limits what a piece that took long, such as one without CPU, costs.
	maxPause = 2 * time.Millisecond
	// idleAfter is the time without a batch after which nobody waits.
	idleAfter = 100 * time.Millisecond
	// minWork is a piece of work that is worth a pause.
	minWork = 500 * time.Microsecond
	// maxWaiting is the number of tables of level 0 from which a late compaction costs more
	// than one in a hurry, because each read looks into all of them.
	maxWaiting = 8
)

// next is called after each piece of the work of a writer that began, or went on after a pause,
// at since. It returns the new value of that.
func (p *pacer) next(since time.Time) time.Time {
	if 2*p.writers.Load() < int64(runtime.GOMAXPROCS(0)) {
		return since
	}
	// The two goroutines of a writer wake each other, which Go prefers to goroutines that
	// have been ready for longer.
	runtime.Gosched()
	now := clock.Now()
	worked := now.Sub(since)
	if worked < minWork {
		return since
	}
	if now.UnixNano()-p.committed.Load() > int64(idleAfter) || p.waiting.Load() >= maxWaiting || p.behind() {
		return now
	}
	p.pause(min(worked, maxPause) * time.Duration(p.writers.Load()))
	return clock.Now()
}

// flushed and compacted count the tables of level 0.
func (p *pacer) flushed(i pebble.FlushInfo) {
	if i.Err == nil && !i.Ingest {
		p.waiting.Add(int64(len(i.Output)))
	}
}

func (p *pacer) compacted(i pebble.CompactionInfo) {
	if i.Err != nil {
		return
	}
	for _, in := range i.Input {
		if in.Level == 0 {
			p.waiting.Add(-int64(len(in.Tables)))
		}
	}
	if i.Output.Level == 0 {
		p.waiting.Add(int64(len(i.Output.Tables)))
	}
}
