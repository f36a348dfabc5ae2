package mvcc

import (
	"sync"

	"quorate/internal/ids"
)

// maxPins bounds the number of past roots.
const maxPins = 64

// pins are past roots, oldest first. A paged list reads each page at the revision of
// the first; with the root of that revision, a page costs no more than a walk of the
// page. Each pin is charged with the nodes that only it and older pins keep alive, so
// dropping the oldest pins frees what they are charged with.
type pins struct {
	mu    sync.Mutex
	list  []pin
	total int64
}

type pin struct {
	st    *state
	bytes int64
}

// add pins a root because its limit cut off a page.
func (p *pins) add(st *state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.list); n > 0 && p.list[n-1].st.gen >= st.gen {
		return // pinned before, or a late reader
	}
	if len(p.list) == maxPins {
		p.dropOldest()
	}
	p.list = append(p.list, pin{st: st})
}

// find returns a pinned state of exactly this revision.
func (p *pins) find(rev ids.Revision) *state {
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

// charge adds kept bytes to the newest pin and drops pins that are compacted or exceed
// the bound. It returns the bytes that remain uncharged: always 0.
func (p *pins) charge(kept int64, compactRev ids.Revision, bound int64) int64 {
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
