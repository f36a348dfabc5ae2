// Package autocompact decides when history is to be compacted, and up to which
// revision.
//
// In: at each interval the time, the current revision and what came of the last
// compaction. Out: a revision to compact to. Always true: it is never newer than
// what the retention protects, and the first compaction comes only after one
// whole retention of observation. Policies belong to one goroutine.
package autocompact

import "time"

// Policy is asked once per Interval, on every member. A member that does not
// lead only records, so that it knows the past when it comes to lead.
type Policy interface {
	// Interval is the time between two questions.
	Interval() time.Duration
	// Due returns the revision to compact to now, given the current one. It is
	// asked on the leader, before Record.
	Due(now time.Time, current int64) (rev int64, due bool)
	// Compacted tells that the compaction up to rev is done. One that failed is
	// due again at the next question.
	Compacted(now time.Time, rev int64)
	// Record notes the current revision.
	Record(current int64)
}

// Retention says how much history to keep; the zero value keeps all.
type Retention struct {
	Period    time.Duration // the changes of that time
	Revisions int64         // else so many revisions
}

// Policy begins to keep so much, now and with the current revision.
func (r Retention) Policy(now time.Time, current int64) Policy {
	if r.Period > 0 {
		return NewPeriodic(r.Period, now, current)
	}
	return NewRevision(r.Revisions)
}

// longest is the most time between two compactions of the periodic policy.
const longest = time.Hour

// samples is how many revisions are recorded between two of them.
const samples = 10

// Periodic keeps the history of the last retention. It compacts once per
// retention, at least hourly, to the revision of one retention ago. It remembers
// ten revisions an hour.
type Periodic struct {
	retention time.Duration
	revs      []int64 // one per interval, oldest first, as many as the retention has
	wait      time.Duration
	last      int64     // revision of the last compaction
	since     time.Time // when that was, or the beginning
}

// NewPeriodic begins at now with the current revision. The retention is positive.
func NewPeriodic(retention time.Duration, now time.Time, current int64) *Periodic {
	return &Periodic{retention: retention, revs: []int64{current}, wait: retention, since: now}
}

// Interval is a tenth of the time between two compactions.
func (p *Periodic) Interval() time.Duration {
	return max(min(p.retention, longest)/samples, time.Millisecond)
}

// Due is the revision of one retention ago, unless it was compacted to already.
func (p *Periodic) Due(now time.Time, _ int64) (int64, bool) {
	rev := p.revs[0]
	if now.Sub(p.since) < p.wait || rev == p.last {
		return 0, false
	}
	p.wait = min(p.retention, longest) // the first waits for the whole retention
	return rev, true
}

// Compacted begins the time to the next compaction.
func (p *Periodic) Compacted(now time.Time, rev int64) { p.last, p.since = rev, now }

// Record forgets what is older than the retention.
func (p *Periodic) Record(current int64) {
	p.revs = append(p.revs, current)
	if n := int(p.retention/p.Interval()) + 1; len(p.revs) > n {
		p.revs = p.revs[len(p.revs)-n:]
	}
}

// Revision keeps the last retention revisions.
type Revision struct{ retention, last int64 }

// NewRevision makes a policy; the retention is positive.
func NewRevision(retention int64) *Revision { return &Revision{retention: retention} }

// Interval is five minutes.
func (*Revision) Interval() time.Duration { return 5 * time.Minute }

// Due is the newest revision that is not kept, unless it was compacted to already.
func (r *Revision) Due(_ time.Time, current int64) (int64, bool) {
	rev := current - r.retention
	return rev, rev > 0 && rev != r.last
}

// Compacted notes the revision.
func (r *Revision) Compacted(_ time.Time, rev int64) { r.last = rev }

// Record does nothing: only the current revision counts.
func (*Revision) Record(int64) {}
