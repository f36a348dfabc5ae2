package watch

import (
	"fmt"
	"time"

	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// retryDelay is the delay before a failed read of history is retried.
const retryDelay = 100 * time.Millisecond

// pass is one scan of history, shared by several watchers.
type pass struct {
	hist   History
	gen    int
	from   ids.Revision
	index  *index
	groups []*group // of index, in creation order
}

// CatchUp feeds unsynced watchers from one scan of history. It reports whether there may be
// more to do immediately; if not, Run waits until a watcher or a queue causes work. It is
// exported for drivers other than Run.
func (h *Hub) CatchUp() (more bool) {
	h.passMu.Lock()
	defer h.passMu.Unlock()
	p := h.choose()
	if p == nil {
		return false
	}
	next, err := p.hist.Scan(p.from, h.o.BatchRevisions, h.o.BatchBytes, p.collect)
	if err == nil && next <= p.from {
		err = fmt.Errorf("history ends before published revision %d", p.from)
	}
	if err != nil {
		return h.failed(p, err)
	}
	return h.finish(p, next)
}

// choose handles the watchers that need no scan, and picks those that share the next scan.
// It returns nil if there are none.
func (h *Hub) choose() *pass {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.unsynced) == 0 {
		return nil
	}
	h.passes++
	hist := h.history()
	first := h.readyLocked(hist.CompactRev())
	if first == nil {
		return nil
	}
	p := &pass{hist: hist, gen: h.gen, from: first.minRev, index: newIndex()}
	p.add(first)
	end := p.from + ids.Revision(h.o.BatchRevisions)
	for n, i := 1, 0; i < len(h.unsynced) && n < h.o.PassWatchers; i++ {
		w := h.unsynced[i]
		if w != first && w.minRev >= p.from && w.minRev < end && w.stream.hasRoom() {
			p.add(w)
			n++
		}
	}
	return p
}

// readyLocked marks watchers that lack nothing as synced, cancels those that are below the
// compacted revision, and returns the watcher at which the next scan starts. In every other
// pass this is the one that is farthest behind: the scan picks up all that it reaches, so
// many watchers at different revisions end up sharing a single sweep. In the passes between,
// it is the one that has waited longest, so that a watcher that lacks little does not have to
// wait for such a sweep.
func (h *Hub) readyLocked(compactRev ids.Revision) (first *watcher) {
	for i := 0; i < len(h.unsynced); {
		w := h.unsynced[i]
		switch {
		case w.minRev > h.rev:
			h.resyncLocked(w) // another watcher is at i now
			continue
		case w.minRev < compactRev:
			r := &Response{WatchID: w.id, Canceled: true, CompactRevision: compactRev}
			if w.stream.push(item{resp: r}) {
				h.killLocked(w)
				continue
			}
		case !w.stream.hasRoom():
		case first == nil,
			h.passes%2 == 0 && w.minRev < first.minRev,
			h.passes%2 == 1 && w.served < first.served:
			first = w
		}
		i++
	}
	return first
}

func (p *pass) add(w *watcher) {
	g := p.index.group(w.spec)
	if len(g.watchers) == 0 {
		p.groups = append(p.groups, g)
	}
	g.watchers = append(g.watchers, w)
}

// collect adds an event from history to the batch of each group that matches it.
func (p *pass) collect(ev Event) error {
	var e *event
	var buf [8]*group
	for _, g := range p.index.match(buf[:0], ev.Key) {
		if !g.wants(ev.Delete) {
			continue
		}
		if e == nil {
			e = clone(ev)
		}
		g.batch = append(g.batch, e)
	}
	return nil
}

// finish queues what the scan has found, and advances the watchers to next. It reports false
// when the queues had room, but not for what was found, so often that all watchers may have
// had their turn: the first one of those queues to be drained wakes Run.
func (h *Hub) finish(p *pass, next ids.Revision) (more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gen != p.gen {
		return true // read from a store that has been replaced since
	}
	cur := h.currentLocked()
	queued := 0
	h.barren++
	for _, g := range p.groups {
		var c *chunk
		if len(g.batch) > 0 {
			c = h.newChunk(g.batch, g.prevKV)
		}
		for _, w := range g.watchers {
			if w.state != unsynced || w.minRev >= next {
				continue // canceled since, or not reached by a scan that was cut short
			}
			if c != nil {
				skip := c.below(w.minRev)
				if skip < len(c.events) {
					if !w.stream.push(item{w: w, chunk: c, skip: skip, rev: cur}) {
						w.served = h.passes // another one comes first next time
						continue
					}
					queued += len(c.events) - skip
				}
			}
			w.minRev, w.served = next, h.passes
			h.barren = 0
			if next > h.rev {
				h.resyncLocked(w)
			}
		}
		if c != nil {
			h.release(c, 1)
		}
	}
	metrics.DebuggingMVCCPendingEventsTotal.Add(float64(queued))
	if h.barren <= len(h.unsynced) {
		return true
	}
	h.barren = 0
	return false
}

// failed handles a failed scan. If a compaction or a new store explains the error, the next
// pass takes them into account; any other error is reported, and the scan retried later.
func (h *Hub) failed(p *pass, err error) (more bool) {
	h.mu.Lock()
	explained := h.gen != p.gen || p.from < p.hist.CompactRev()
	h.mu.Unlock()
	if explained {
		return true
	}
	h.o.OnError(fmt.Errorf("catch watchers up from revision %d: %w", p.from, err))
	h.clk.AfterFunc(retryDelay, h.wakeRun)
	return false
}
