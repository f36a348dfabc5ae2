package pebble

import (
	"runtime"
	"testing"
	"time"

	"quorate/internal/clock"

	"github.com/cockroachdb/pebble/v2"
)

// A writer pauses for as long as it has worked when that helps somebody, and only then.
func TestPacer(t *testing.T) {
	cpus := int64(runtime.GOMAXPROCS(0))
	for _, c := range []struct {
		name    string
		writers int64
		worked  time.Duration
		idle    time.Duration // since the last batch
		waiting int64
		behind  bool
		want    time.Duration // at least; 0: none
	}{
		{name: "all CPUs are busy", writers: cpus, worked: time.Millisecond, want: time.Duration(cpus) * time.Millisecond},
		{name: "a piece without CPU", writers: cpus, worked: time.Hour, want: time.Duration(cpus) * maxPause},
		{name: "a short piece", writers: cpus, worked: -time.Hour},
		{name: "no writer", writers: 0, worked: time.Millisecond},
		{name: "nobody else writes", writers: cpus, worked: time.Millisecond, idle: time.Second},
		{name: "level 0 is full", writers: cpus, worked: time.Millisecond, waiting: maxWaiting},
		{name: "the next memtable is filling", writers: cpus, worked: time.Millisecond, behind: true},
	} {
		var paused time.Duration
		p := &pacer{behind: func() bool { return c.behind }, pause: func(d time.Duration) { paused += d }}
		p.writers.Store(c.writers)
		p.committed.Store(clock.Now().Add(-c.idle).UnixNano())
		p.waiting.Store(c.waiting)
		p.next(clock.Now().Add(-c.worked))
		if most := c.want * 2 * time.Duration(max(1, maxPause/time.Millisecond)); paused < c.want || paused > most {
			t.Errorf("%s: it pauses for %v, want at least %v", c.name, paused, c.want)
		}
	}
}

// A pause is not work: the next one counts from its end.
func TestPacerCounts(t *testing.T) {
	p := &pacer{behind: func() bool { return false }, pause: func(time.Duration) {}}
	p.writers.Store(int64(runtime.GOMAXPROCS(0)))
	p.committed.Store(clock.Now().Add(time.Hour).UnixNano())
	began := clock.Now()
	if since := p.next(began.Add(-time.Second)); since.Before(began) {
		t.Errorf("after a pause, work counts from %v before it", began.Sub(since))
	}
	p.flushed(pebble.FlushInfo{Output: make([]pebble.TableInfo, 2)})
	p.flushed(pebble.FlushInfo{Output: make([]pebble.TableInfo, 1), Err: pebble.ErrClosed})
	p.compacted(pebble.CompactionInfo{Input: []pebble.LevelInfo{{Level: 0, Tables: make([]pebble.TableInfo, 2)}, {Level: 6, Tables: make([]pebble.TableInfo, 5)}},
		Output: pebble.LevelInfo{Level: 0, Tables: make([]pebble.TableInfo, 1)}})
	p.compacted(pebble.CompactionInfo{Input: []pebble.LevelInfo{{Level: 0, Tables: make([]pebble.TableInfo, 1)}}, Err: pebble.ErrClosed})
	if n := p.waiting.Load(); n != 1 {
		t.Errorf("%d tables wait in level 0, want 1", n)
	}
}
