package autocompact

import (
	"testing"
	"time"

	"quorate/internal/ids"
)

var start = time.Unix(1_700_000_000, 0)

// run calls a policy n times, one revision per interval, and returns at which
// calls it wanted to compact and to which revision. fails says which attempts
// fail.
func run(p Policy, n int, rev func(i int) ids.Revision, leads, works func(i int) bool) map[int]ids.Revision {
	got := map[int]ids.Revision{}
	for i := 1; i <= n; i++ {
		now := start.Add(time.Duration(i) * p.Interval())
		if leads(i) {
			if to, due := p.Due(now, rev(i)); due {
				got[i] = to
				if works(i) {
					p.Compacted(now, to)
				}
			}
		}
		p.Record(rev(i))
	}
	return got
}

func always(int) bool { return true }

func each(i int) ids.Revision { return ids.Revision(i) + 1 }

func compare(t *testing.T, got map[int]ids.Revision, want map[int]ids.Revision) {
	t.Helper()
	for i, rev := range want {
		if got[i] != rev {
			t.Errorf("question %d: compaction to %d, want %d", i, got[i], rev)
		}
	}
	if len(got) != len(want) {
		t.Errorf("compactions %v, want %v", got, want)
	}
}

// The numbers are those of etcd's compactor: the call after a recording sees the
// revision recorded one retention before that.
func TestPeriodic(t *testing.T) {
	for _, tt := range []struct {
		retention, interval time.Duration
		questions           int
		want                map[int]ids.Revision
	}{
		{5 * time.Minute, 30 * time.Second, 60, map[int]ids.Revision{10: 1, 20: 10, 30: 20, 40: 30, 50: 40, 60: 50}},
		{time.Hour, 6 * time.Minute, 30, map[int]ids.Revision{10: 1, 20: 10, 30: 20}},
		{2 * time.Hour, 6 * time.Minute, 50, map[int]ids.Revision{20: 1, 30: 10, 40: 20, 50: 30}},
		{24 * time.Hour, 6 * time.Minute, 260, map[int]ids.Revision{240: 1, 250: 10, 260: 20}},
		{5 * time.Second, 500 * time.Millisecond, 20, map[int]ids.Revision{10: 1, 20: 10}},
	} {
		p := NewPeriodic(tt.retention, start, 1)
		if got := p.Interval(); got != tt.interval {
			t.Errorf("%s: interval %s, want %s", tt.retention, got, tt.interval)
		}
		compare(t, run(p, tt.questions, each, always, always), tt.want)
	}
}

func TestPeriodicNeverCompactsWhatIsRetained(t *testing.T) {
	for _, retention := range []time.Duration{7 * time.Second, 59 * time.Minute, 61 * time.Minute, 90 * time.Minute, 25 * time.Hour} {
		p := NewPeriodic(retention, start, 1)
		for i, rev := range run(p, 2000, each, always, always) {
			// Revision r was current at call r-1; the revision of the previous call is
			// the newest that the policy knows.
			if age := time.Duration(i-int(rev-1)) * p.Interval(); age < retention {
				t.Errorf("retention %s: question %d compacts to revision %d, of %s ago", retention, i, rev, age)
			}
		}
	}
}

func TestPeriodicFollowerRecords(t *testing.T) {
	p := NewPeriodic(time.Hour, start, 1)
	got := run(p, 40, each, func(i int) bool { return i > 33 }, always)
	compare(t, got, map[int]ids.Revision{34: 24}) // immediately, to the revision of one hour before
}

func TestPeriodicTriesAgain(t *testing.T) {
	p := NewPeriodic(time.Hour, start, 1)
	got := run(p, 24, each, always, func(i int) bool { return i > 11 })
	compare(t, got, map[int]ids.Revision{10: 1, 11: 1, 12: 2, 22: 12})
}

func TestPeriodicSkipsWhatIsCompacted(t *testing.T) {
	p := NewPeriodic(5*time.Minute, start, 100)
	got := run(p, 60, func(i int) ids.Revision { return 100 + max(0, ids.Revision(i)-40) }, always, always)
	compare(t, got, map[int]ids.Revision{10: 100, 52: 101})
}

func TestPeriodicMemoryIsBounded(t *testing.T) {
	p := NewPeriodic(2*time.Hour, start, 1)
	run(p, 5000, each, always, always)
	if len(p.revs) != 21 || cap(p.revs) > 64 {
		t.Errorf("%d revisions are kept in %d places", len(p.revs), cap(p.revs))
	}
	if got := NewPeriodic(1, start, 1).Interval(); got <= 0 {
		t.Errorf("interval of a retention of a nanosecond: %s", got)
	}
}

func TestRevision(t *testing.T) {
	p := NewRevision(10)
	if p.Interval() != 5*time.Minute {
		t.Errorf("interval %s", p.Interval())
	}
	revs := []ids.Revision{0, 1, 10, 11, 11, 100, 100, 200}
	got := run(p, 7, func(i int) ids.Revision { return revs[i] }, always, always)
	compare(t, got, map[int]ids.Revision{3: 1, 5: 90, 7: 190})
	// A failed compaction is retried; a follower does nothing.
	got = run(NewRevision(10), 3, func(int) ids.Revision { return 30 }, func(i int) bool { return i > 1 }, func(i int) bool { return i > 2 })
	compare(t, got, map[int]ids.Revision{2: 20, 3: 20})
}
