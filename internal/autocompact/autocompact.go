// Package autocompact decides when to compact the history, and up to which
// revision.
//
// In: at each interval the time, the current revision and the result of the
// last compaction. Out: a revision to compact to. Always true: that revision
// never includes history that the retention protects, and the first compaction
// is due only after one full retention of observation. Policies are not safe for
// concurrent use.
package autocompact

import (
	"time"

	"quorate/internal/ids"
)

// Policy is called once per Interval, on every member. Members other than
// the leader only record, so that they know the past when they become
// leader.
type Policy interface {
	// Interval is the time between two calls.
	Interval() time.Duration
	// Due returns the revision to compact to now, given the current one. It is
	// called on the leader, before Record.
	Due(now time.Time, current ids.Revision) (rev ids.Revision, due bool)
	// Compacted reports that the compaction up to rev is done. A failed
	// compaction is due again at the next call.
	Compacted(now time.Time, rev ids.Revision)
	// Record records the current revision.
	Record(current ids.Revision)
}

// Retention is how much history to keep; the zero value keeps all.
type Retention struct {
	Period    time.Duration // keep the changes of this period
	Revisions int64         // otherwise keep this many revisions
}

// Policy returns the policy for the retention, starting now at the current
// revision.
func (r Retention) Policy(now time.Time, current ids.Revision) Policy {
	if r.Period > 0 {
		return NewPeriodic(r.Period, now, current)
	}
	return NewRevision(r.Revisions)
}

// longest is the maximum time between two compactions of the periodic
// policy.
const longest = time.Hour

// samples is how many revisions are recorded between two compactions.
const samples = 10

// Periodic keeps the history of one retention period. It compacts once per
// retention, at least hourly, to the revision of one retention ago. It records
// ten revisions per compaction.
type Periodic struct {
	retention time.Duration
	revs      []ids.Revision // one per interval of the retention, oldest first
	wait      time.Duration
	last      ids.Revision // revision of the last compaction
	since     time.Time    // time of the last compaction, or of the start
}

// NewPeriodic returns a policy that starts at now with the current revision. The
// retention must be positive.
func NewPeriodic(retention time.Duration, now time.Time, current ids.Revision) *Periodic {
	return &Periodic{retention: retention, revs: []ids.Revision{current}, wait: retention, since: now}
}

// Interval returns a tenth of the time between two compactions.
func (p *Periodic) Interval() time.Duration {
	return max(min(p.retention, longest)/samples, time.Millisecond)
}

// Due returns the revision of one retention ago, unless that was compacted
// already.
func (p *Periodic) Due(now time.Time, _ ids.Revision) (ids.Revision, bool) {
	rev := p.revs[0]
	if now.Sub(p.since) < p.wait || rev == p.last {
		return 0, false
	}
	p.wait = min(p.retention, longest) // only the first compaction waits for the full retention
	return rev, true
}

// Compacted starts the interval to the next compaction.
func (p *Periodic) Compacted(now time.Time, rev ids.Revision) { p.last, p.since = rev, now }

// Record records a revision and drops those older than the retention.
func (p *Periodic) Record(current ids.Revision) {
	p.revs = append(p.revs, current)
	if n := int(p.retention/p.Interval()) + 1; len(p.revs) > n {
		p.revs = p.revs[len(p.revs)-n:]
	}
}

// Revision keeps the last retention revisions.
type Revision struct {
	retention int64
	last      ids.Revision
}

// NewRevision returns a policy that keeps the given number of revisions,
// which must be positive.
func NewRevision(retention int64) *Revision { return &Revision{retention: retention} }

// Interval returns five minutes.
func (*Revision) Interval() time.Duration { return 5 * time.Minute }

// Due returns the newest revision that is not retained, unless that was compacted
// already.
func (r *Revision) Due(_ time.Time, current ids.Revision) (ids.Revision, bool) {
	rev := current - ids.Revision(r.retention)
	return rev, rev > 0 && rev != r.last
}

// Compacted records the revision.
func (r *Revision) Compacted(_ time.Time, rev ids.Revision) { r.last = rev }

// Record does nothing: only the current revision matters.
func (*Revision) Record(ids.Revision) {}
