package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/replica"
)

// The pipeline of production, driven by events: a job completes some time after it has
// become due, and other events happen in between.

// diskRetry is the pause before a write is retried that found the disk full.
const diskRetry = 100 * time.Millisecond

func (n *node) core() *replica.Core { return n.pipe.Core() }

// installing reports whether a snapshot is being installed.
func (n *node) installing() bool { return n.pipe.Log.Snapshot() != nil }

func (n *node) env() *replica.Env {
	w := n.w
	return &replica.Env{
		Core: func(f func(*replica.Input)) {
			var in replica.Input
			f(&in)
			for _, m := range in.Acks {
				n.promise(m)
			}
			n.step(in)
		},
		Send: n.sendAll, Follow: n.follow,
		TruncationDue: func() { n.later(w.between(0, truncateDelay), n.truncate) },
		WriteTo:       n.log, Home: func() replica.Home { return n.home },
		Exchange: n.exchange, Exchanged: n.exchanged,
		Apply: n.applyEntries, Applied: n.applied, Now: n.time,
		AuthChanged: n.recheckWatches, MemberChanged: n.memberChanged, Reconfigured: func() {},
		TermBegun: n.termBegun, NoSpace: n.raiseNoSpace,
	}
}

// step takes one step of the core and schedules the work that follows.
func (n *node) step(in replica.Input) {
	if n.w.bug != nil {
		if err := n.w.bug(n); err != nil {
			n.w.fail("%w", err)
			return
		}
	}
	if lost := n.pipe.Step(n.w.time(), in); lost != nil {
		n.lost = lost
		n.w.log("ended %d: %v", n.index, lost)
		if !n.outdated {
			n.w.fail("member %d ends: %w", n.index, lost)
		}
		n.stop()
		return
	}
	n.kickLog()
	n.kickApply()
	n.settleWaiting()
}

// follow records snapshots that raft has accepted.
func (n *node) follow(_ replica.Input, eff replica.Effects) {
	for _, a := range eff.Append {
		if a.Snapshot != nil {
			n.accepted = ids.Index(a.Snapshot.GetMetadata().GetIndex())
		}
	}
}

func (n *node) sendAll(msgs []*raftpb.Message) {
	for _, m := range msgs {
		if m.GetType() == raftpb.MsgSnap {
			n.sendSnapshot(m)
			continue
		}
		n.promise(m)
		n.send(m)
	}
}

func (n *node) kickLog() {
	if n.logBusy || !n.pipe.Log.Take() {
		return
	}
	n.logBusy, n.logFrom = true, n.w.now
	n.later(n.w.between(0, n.w.faults.SyncDelay), n.writeLog)
}

// writeLog runs all queued jobs, once the disk does not hang.
func (n *node) writeLog() {
	if n.w.now < n.stalled {
		n.later(n.stalled-n.w.now, n.writeLog)
		return
	}
	n.pipe.Log.Take()
	n.workOnLog()
}

// workOnLog runs the jobs that are due until one has to wait.
func (n *node) workOnLog() {
	for {
		switch n.pipe.Log.Due() {
		case replica.Idle:
			n.logBusy = false
			n.kickLog()
			return
		case replica.Append:
			if !n.append() {
				return
			}
		default:
			n.later(n.w.between(0, 10*n.w.faults.SyncDelay), n.install)
			return
		}
	}
}

// append runs one group of writes. It returns false if the work continues later, because
// the disk is full, or not at all.
func (n *node) append() bool {
	err := n.pipe.Log.Do(context.Background())
	switch {
	case errors.Is(err, raftlog.ErrNoSpace):
		n.later(diskRetry, n.workOnLog)
		return false
	case err != nil:
		n.w.fail("append at member %d: %w", n.index, err)
		return false
	}
	n.pipe.Log.Done()
	return !n.down
}

// install runs one job of an installation and continues with the next.
func (n *node) install() {
	job, index := n.pipe.Log.Due(), ids.Index(n.pipe.Log.Snapshot().GetMetadata().GetIndex())
	if job == replica.Exchange {
		if err := n.pipe.Log.Do(context.Background()); err != nil {
			n.w.fail("exchange at member %d: %w", n.index, err)
		}
		n.kickApply()
		return
	}
	full := false
	ok := n.attempt(string(job), func() error {
		err := n.pipe.Log.Do(context.Background())
		if full = errors.Is(err, raftlog.ErrNoSpace); full {
			return nil
		}
		return err
	})
	switch {
	case !ok:
	case full:
		n.later(diskRetry, n.install)
	default:
		if job == replica.Follow {
			if n.accepted == index {
				n.accepted = 0
			}
			n.w.installed++
			n.w.log("installed %d at %d", index, n.index)
		}
		if n.pipe.Log.Done(); !n.down {
			n.workOnLog()
		}
	}
}

// exchanged continues an installation after its store is in use. After an error there is
// nothing to do here: attempt has handled it.
func (n *node) exchanged(err error) {
	if err != nil {
		return
	}
	n.later(0, func() {
		n.pipe.Log.Done()
		n.workOnLog()
	})
}

func (n *node) kickApply() {
	if n.applyBu || !n.pipe.Apply.Take() {
		return
	}
	n.applyBu = true
	n.laterApply(n.apply)
}

// laterApply runs do after a delay, once the store does not hang.
func (n *node) laterApply(do func()) {
	n.later(n.w.between(0, n.w.faults.ApplyDelay), func() { n.unlessApplyStalls(do) })
}

func (n *node) unlessApplyStalls(do func()) {
	if n.w.now < n.applyStall {
		n.later(n.applyStall-n.w.now, func() { n.unlessApplyStalls(do) })
		return
	}
	do()
}

// apply applies the next batch, of a random size, or makes the next call between two runs.
func (n *node) apply() {
	n.pipe.Apply.Take()
	limit := 0
	if k := n.pipe.Apply.Left(); k > 1 && n.w.rng.IntN(2) == 0 {
		limit = 1 + n.w.rng.IntN(k-1)
	}
	if err := n.pipe.Apply.Do(limit); err != nil {
		n.w.fail("apply at member %d: %w", n.index, err)
		return
	}
	if n.down {
		return
	}
	n.settleWaiting()
	n.noteConfig()
	n.laterApply(func() {
		n.applyBu = false
		n.kickApply()
	})
}

func (n *node) applyEntries(ents []apply.Entry) (apply.Outcome, error) {
	for i := range ents {
		n.noteApplied(&ents[i])
	}
	want := n.w.judge(ents)
	out, err := n.machine.Apply(ents)
	if err == nil {
		n.compare(ents, want, &out)
	}
	return out, err
}

// applied checks the outcome of a batch before its results are delivered.
func (n *node) applied(ents []apply.Entry, out apply.Outcome, _ time.Duration) {
	n.noteDigest(ents)
	n.w.log("apply %d index=%d rev=%d", n.index, out.Applied, out.Rev)
	for _, e := range out.Members {
		if _, known := n.w.gone[e.Member.ID]; e.Action == membership.Removed && !known {
			n.w.gone[e.Member.ID] = out.Applied
		}
	}
	for n.machine.KV().Step() {
	}
	if n.accepted > 0 {
		n.w.overtaken += len(out.ConfChanges)
	}
}

func (n *node) memberChanged(e membership.Effect) {
	if e.Action != membership.Removed {
		return
	}
	if len(n.cluster.VoterIDs()) == 0 {
		n.w.fail("member %d has applied the removal of the last voter", n.index)
	}
	if e.Member.ID == n.id {
		n.leave()
	}
}

// truncate drops the log entries that raft counts as applied and the store has flushed. It
// runs concurrently with apply, which may be in the middle of a run.
func (n *node) truncate() {
	acked := n.core().Node().State().Applied
	if acked > n.machine.Applied() {
		n.w.fail("raft of member %d counts entry %d as applied, its store has applied %d", n.index, acked, n.machine.Applied())
		return
	}
	beside := n.machine.Applied() > acked
	var index ids.Index
	ok := n.attempt("truncation", func() error {
		if err := n.machine.Engine().Flush(context.Background()); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		var err error
		index, err = n.pipe.Log.Truncate(acked, n.machine.ConfState(), func() bool { return n.sending > 0 })
		if errors.Is(err, raftlog.ErrNoSpace) {
			return nil // retried with the next truncation
		}
		return err
	})
	if ok && index > 0 && beside {
		n.w.beside++
	}
}
