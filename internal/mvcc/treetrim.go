package mvcc

import "quorate/internal/ids"

// trim is one bounded part of a compaction of the index.
type trim struct {
	rev    ids.Revision // compact at this revision
	leaves int          // how many more leaves may be visited
	revs   int          // how many more revisions may be dropped
	out    []Revision   // dropped, per key in ascending order
	tombs  []bool       // parallel to out
}

func (c *trim) spent() bool { return c.leaves <= 0 || c.revs <= 0 }

// compact drops revisions that a compaction at c.rev removes until the budget is spent.
// There is more to do as long as t.root.garb <= c.rev.
func (t *tree) compact(c *trim) {
	if t.root.garb > c.rev {
		return
	}
	t.root = t.trimNode(t.root, c)
	if t.root.n == nil {
		t.root.n = &node{gen: t.gen}
	}
	for len(t.root.n.kids) == 1 {
		t.root = t.root.n.kids[0]
	}
}

// trimNode returns the child with its new summary; n is nil if nothing is left.
func (t *tree) trimNode(k kid, c *trim) kid {
	n := t.own(k.n, 0)
	if n.leaf() {
		c.leaves--
		n = t.trimLeaf(n, c)
		if len(n.ents) == 0 {
			return kid{garb: never}
		}
		return n.summary()
	}
	shrunk := false
	for i := range n.kids {
		if n.kids[i].garb > c.rev {
			continue
		}
		if c.spent() {
			break
		}
		before := n.kids[i].n.size()
		n.kids[i] = t.trimNode(n.kids[i], c)
		shrunk = shrunk || n.kids[i].n == nil || n.kids[i].n.size() < before
	}
	if shrunk {
		t.coalesce(n)
	}
	if len(n.kids) == 0 {
		return kid{garb: never}
	}
	return n.summary()
}

func (n *node) size() int { return len(n.ents) + len(n.kids) }

// trimLeaf drops revisions from the entries of a writable leaf.
func (t *tree) trimLeaf(n *node, c *trim) *node {
	gone, olds := 0, 0
	for i := range n.ents {
		if n.garbage(i) <= c.rev && c.revs > 0 && n.trimEntry(i, c) {
			n.ents[i].version = -1
			gone++
		}
		olds += len(n.history(i))
	}
	if olds == 0 {
		n.hist = nil
	}
	if gone == 0 {
		return n
	}
	r := newLeaf(t.gen, len(n.keys), len(n.ents)-gone)
	for i := range n.ents {
		if n.ents[i].version != -1 {
			r.take(n, i)
		}
	}
	return r
}

// trimEntry drops the revisions of one key that the compaction removes, within the
// budget, and reports whether the key itself is gone.
func (n *node) trimEntry(i int, c *trim) (gone bool) {
	h, cur := n.history(i), n.ents[i]
	first, m := len(h), cur // the first revision that stays; len(h) means cur
	if cur.mod > c.rev {
		// There is garbage, so there is a revision <= c.rev.
		first = newest(h, c.rev)
		m = h[first]
	}
	if m.tomb() && m.mod < c.rev {
		first++
	}
	cut := min(first, c.revs, len(h))
	for _, m := range h[:cut] {
		c.drop(m)
	}
	if cut > 0 {
		switch rest := h[cut:]; {
		case len(rest) == 0:
			n.hist[i] = nil
		case cut > len(rest):
			n.hist[i] = append(make([]meta, 0, len(rest)+1), rest...)
		default:
			n.hist[i] = rest
		}
	}
	if first > len(h) && cut == len(h) && c.revs > 0 {
		c.drop(cur)
		return true
	}
	return false
}

func (c *trim) drop(m meta) {
	c.revs--
	c.out = append(c.out, m.rev())
	c.tombs = append(c.tombs, m.tomb())
}

// coalesce removes empty children and joins small adjacent ones, so that a shrinking
// key space releases its memory.
func (t *tree) coalesce(n *node) {
	kids, seps := make([]kid, 0, len(n.kids)), make([]string, 0, len(n.kids))
	for i, k := range n.kids {
		if k.n == nil {
			continue
		}
		last := len(kids) - 1
		if last < 0 || !joinable(kids[last].n, k.n) {
			kids, seps = append(kids, k), append(seps, n.seps[i])
			continue
		}
		kids[last] = t.join(kids[last].n, k.n, n.seps[i]).summary()
	}
	n.kids, n.seps = kids, seps
}

func joinable(l, r *node) bool {
	if l.leaf() {
		return len(l.ents)+len(r.ents) <= maxLeaf*3/4 && len(l.keys)+len(r.keys) <= maxArena/2
	}
	return len(l.kids)+len(r.kids) <= maxInner*3/4
}

func (t *tree) join(l, r *node, sep string) *node {
	if !l.leaf() {
		j := &node{gen: t.gen}
		j.kids = append(append(make([]kid, 0, len(l.kids)+len(r.kids)), l.kids...), r.kids...)
		j.seps = append(append(make([]string, 0, len(j.kids)), l.seps...), r.seps...)
		j.seps[len(l.kids)] = sep
		return j
	}
	j := newLeaf(t.gen, len(l.keys)+len(r.keys), len(l.ents)+len(r.ents))
	for i := range l.ents {
		j.take(l, i)
	}
	for i := range r.ents {
		j.take(r, i)
	}
	return j
}

// --- Bulk loading.
