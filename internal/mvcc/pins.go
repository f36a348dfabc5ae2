package mvcc

import "sync"

// maxPins bounds the number of past roots.
const maxPins = 64

// pins are past roots, oldest first. A list in pages reads each page at the
// revision of the first; with the root of that revision at hand, a page is a
// walk of the page. Each pin is charged with the nodes that only it and older
// pins still hold, so giving up the oldest pins gives back what they are
// charged with.
type pins struct {
	mu    sync.Mutex
	list  []pin
	total int64
}

type pin struct {
	st    *state
	bytes int64
}

// add pins a root because a page of it was cut off by its limit.
func (p *pins) add(st *state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.list); n > 0 && p.list[n-1].st.gen >= st.gen {
		return // pinned before, or a reader that came late
	}
	if len(p.list) == maxPins {
		p.dropOldest()
	}
	p.list = append(p.list, pin{st: st})
}

// find returns a pinned state of exactly this revision.
func (p *pins) find(rev int64) *state {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.list) - 1; i >= 0; i-- {
		if st := p.list[i].st; st.rev == rev {
			return st
		}
	}
	return nil
}

func (p *pins) newestGen() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.list); n > 0 {
		return p.list[n-1].st.gen
	}
	return 0
}

// charge bills kept bytes to the newest pin and gives up pins that nobody may
// read any more or that are over the bound. The rest is billed, so 0 is left.
func (p *pins) charge(kept, compactRev, bound int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.list); n > 0 {
		p.list[n-1].bytes += kept
		p.total += kept
	}
	for len(p.list) > 0 && (p.total > bound || p.list[0].st.rev < compactRev) {
		p.dropOldest()
	}
	return 0
}

func (p *pins) dropOldest() {
	p.total -= p.list[0].bytes
	p.list[0] = pin{}
	p.list = p.list[1:]
}
