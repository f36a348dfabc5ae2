package mvcc

import "quorate/internal/ids"

// span is a range of keys [lo, hi); a nil bound is open.
type span struct{ lo, hi []byte }

// within returns the range [a, b) of entries of a leaf that are in s.
func (n *node) within(s span) (a, b int) {
	b = len(n.ents)
	if s.lo != nil {
		a, _ = n.search(s.lo)
	}
	if s.hi != nil {
		b, _ = n.search(s.hi)
	}
	return a, max(a, b)
}

// inner returns the range [a, b] of children of an inner node that overlap s.
func (n *node) inner(s span) (a, b int) {
	b = len(n.kids) - 1
	if s.lo != nil {
		a = n.child(s.lo)
	}
	if s.hi != nil {
		b = n.child(s.hi)
	}
	return a, b
}

// narrow drops the bounds that child i of the overlapping children [a, b] satisfies.
func (s span) narrow(i, a, b int) span {
	if i != a {
		s.lo = nil
	}
	if i != b {
		s.hi = nil
	}
	return s
}

// count returns the number of keys of s that were live at rev.
func (k kid) count(s span, rev ids.Revision) int64 { return k.total(s, rev).live }

// total returns the extent of the keys of s that were live at rev: O(log n) if nothing in s
// is newer than rev, otherwise the leaves with newer keys are visited.
func (k kid) total(s span, rev ids.Revision) (sum extent) {
	n := k.n
	if s.lo == nil && s.hi == nil && k.maxMod <= rev {
		return k.extent
	}
	if n.leaf() {
		a, b := n.within(s)
		for i := a; i < b; i++ {
			if m, ok := n.at(i, rev); ok {
				sum.add(m.extent())
			}
		}
		return sum
	}
	a, b := n.inner(s)
	for i := a; i <= b; i++ {
		sum.add(n.kids[i].total(s.narrow(i, a, b), rev))
	}
	return sum
}

// visit is called with an entry of a leaf and its revision at the requested time; it
// returns false to stop the walk.
type visit func(n *node, i int, m meta) bool

// ascend visits the keys of s that were live at rev in key order.
func (k kid) ascend(s span, rev ids.Revision, f visit) bool {
	n := k.n
	if n.leaf() {
		a, b := n.within(s)
		for i := a; i < b; i++ {
			if m, ok := n.at(i, rev); ok && !f(n, i, m) {
				return false
			}
		}
		return true
	}
	a, b := n.inner(s)
	for i := a; i <= b; i++ {
		if c := n.kids[i]; c.empty(rev) {
			continue
		} else if !c.ascend(s.narrow(i, a, b), rev, f) {
			return false
		}
	}
	return true
}

// descendKeys is ascend in reverse key order.
func (k kid) descendKeys(s span, rev ids.Revision, f visit) bool {
	n := k.n
	if n.leaf() {
		a, b := n.within(s)
		for i := b - 1; i >= a; i-- {
			if m, ok := n.at(i, rev); ok && !f(n, i, m) {
				return false
			}
		}
		return true
	}
	a, b := n.inner(s)
	for i := b; i >= a; i-- {
		if c := n.kids[i]; c.empty(rev) {
			continue
		} else if !c.descendKeys(s.narrow(i, a, b), rev, f) {
			return false
		}
	}
	return true
}

// empty reports cheaply that no key below was live at rev.
func (k kid) empty(rev ids.Revision) bool { return k.live == 0 && k.maxMod <= rev }

// --- Compaction.
