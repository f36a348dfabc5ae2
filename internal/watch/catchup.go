package watch

import (
	"fmt"
	"time"

	"quorate/internal/metrics"
)

// retryDelay is the pause after history could not be read.
const retryDelay = 100 * time.Millisecond

// pass is one shared scan of history.
type pass struct {
	hist   History
	gen    int
	from   int64
	index  *index
	groups []*group // of index, in order of creation
}

// CatchUp feeds unsynced watchers with one scan of history. It reports whether
// there may be more to do at once; otherwise Run waits until a watcher or a queue
// gives it work. For drivers other than Run.
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
	h.finish(p, next)
	return true
}

// choose settles what needs no scan and picks the watchers that share the next
// one; nil if there is none.
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
	end := p.from + int64(h.o.BatchRevisions)
	for n, i := 1, 0; i < len(h.unsynced) && n < h.o.PassWatchers; i++ {
		w := h.unsynced[i]
		if w != first && w.minRev >= p.from && w.minRev < end && w.stream.hasRoom() {
			p.add(w)
			n++
		}
	}
	return p
}

// readyLocked makes watchers synced that have everything, cancels those that lie
// below the compaction, and returns where the next scan starts. Every other pass
// that is the watcher which is farthest behind: all that it passes join it, so
// many watchers at different revisions end up sharing one sweep. In the passes
// between it is the one that has waited longest, so that nobody who lacks little
// waits for a sweep from far behind.
func (h *Hub) readyLocked(compactRev int64) (first *watcher) {
	for i := 0; i < len(h.unsynced); {
		w := h.unsynced[i]
		switch {
		case w.minRev > h.rev:
			h.resyncLocked(w) // another one is at i now
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

// collect adds an event of the history to the batch of each group that wants it.
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

// finish queues what the scan found and moves the watchers on to next.
func (h *Hub) finish(p *pass, next int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gen != p.gen {
		return // read from a store that has been replaced
	}
	cur := h.currentLocked()
	queued := 0
	for _, g := range p.groups {
		var c *chunk
		if len(g.batch) > 0 {
			c = h.newChunk(g.batch, g.prevKV)
		}
		for _, w := range g.watchers {
			if w.state != unsynced || w.minRev >= next {
				continue // canceled meanwhile, or ahead of a scan cut short
			}
			if c != nil {
				skip := c.below(w.minRev)
				if skip < len(c.events) {
					if !w.stream.push(item{w: w, chunk: c, skip: skip, rev: cur}) {
						continue
					}
					queued += len(c.events) - skip
				}
			}
			w.minRev, w.served = next, h.passes
			if next > h.rev {
				h.resyncLocked(w)
			}
		}
		if c != nil {
			h.release(c)
		}
	}
	metrics.DebuggingMVCCPendingEventsTotal.Add(float64(queued))
}

// failed decides what becomes of a scan that failed. A compaction or a new store
// explains it, and the next pass takes account of them; anything else is told,
// and tried again later.
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
