package sim

import "quorate/internal/ids"

// maxElections is how many election timeouts a cluster may need, once all faults have
// stopped, until as many operations are acknowledged as there are clients.
const maxElections = 10

// checkProgress waits until the last disks no longer hang, and then for progress.
func (w *World) checkProgress() {
	w.run(w.faults.Outage)
	acked := func() (n int) {
		for _, c := range w.clients {
			n += c.acked
		}
		return n
	}
	start, goal := w.now, acked()+len(w.clients)
	if !w.runUntil(maxElections*electionTicks*tick, func() bool { return acked() >= goal }) {
		w.fail("no progress within %v after all faults have stopped", maxElections*electionTicks*tick)
	}
	w.progress = w.now - start
}

// maxOwn is how many requests of its own a member may have in flight.
const maxOwn = 16

// checkBounds looks at what must not grow, when no client has asked for anything for a while:
// requests that count as in flight, and the log, which is truncated at the latest when as
// many entries are applied again.
func (w *World) checkBounds() {
	for _, n := range w.members() {
		if n.down {
			continue
		}
		n.auditWatches()
		if k := n.props.Len(); k > maxOwn {
			w.fail("%d requests are in flight at member %d, and no client waits", k, n.index)
		}
		last, err := n.log.LastIndex()
		if err != nil {
			w.fail("last index of member %d: %w", n.index, err)
		}
		// A truncation that found a snapshot being sent, or the disk full, is not repeated
		// before the next is due.
		const inFlight = 200
		if kept, limit := ids.Index(last)-min(ids.Index(last), n.pipe.Log.Mark()), 3*(ids.Index(w.set.TruncateAfter)+1)+ids.Index(w.set.CatchUp)+inFlight; kept > limit {
			w.fail("the log of member %d holds %d entries, want at most %d", n.index, kept, limit)
		}
	}
}
