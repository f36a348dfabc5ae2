package mvcc

import "quorate/internal/lease"

// builder builds a tree from keys in ascending order.
type builder struct {
	gen    uint64
	leaf   *node
	levels [][]kid // finished children waiting for a parent, per level from the leaves up
	seps   [][]string
	olds   []meta // memory for histories
}

// add appends a key; revs are its revisions in ascending order.
func (b *builder) add(key []byte, revs []meta, lease lease.ID) {
	if b.leaf == nil {
		b.leaf = &node{gen: b.gen, offs: make([]uint32, 0, maxLeaf), ents: make([]meta, 0, maxLeaf)}
	}
	n, last := b.leaf, len(revs)-1
	n.offs = append(n.offs, uint32(len(n.keys)))
	if n.keys == nil {
		n.keys = make([]byte, 0, (len(key)+2)*maxLeaf)
	}
	n.keys = appendKey(n.keys, key)
	n.ents = append(n.ents, revs[last])
	at := len(n.ents) - 1
	if n.leases != nil {
		n.leases = append(n.leases, 0)
	}
	n.setLease(at, lease)
	if n.hist == nil && last > 0 {
		n.hist = make([][]meta, at, maxLeaf)
	}
	if n.hist != nil {
		n.hist = append(n.hist, b.history(revs[:last]))
	}
	if len(n.ents) >= maxLeaf || len(n.keys) > maxArena {
		b.flushLeaf()
	}
}

// history copies revs. Those of several keys share an object, which stays until a compaction has
// dropped the last of them: after a start, one at a later revision does.
func (b *builder) history(revs []meta) []meta {
	n := len(revs)
	switch {
	case n == 0:
		return nil
	case n > oldsPiece/4:
		return append(make([]meta, 0, n), revs...)
	case n > len(b.olds):
		b.olds = make([]meta, oldsPiece)
	}
	h := append(b.olds[:0:n], revs...)
	b.olds = b.olds[n:]
	return h
}

func (b *builder) flushLeaf() {
	if n := b.leaf; n != nil {
		b.leaf = nil
		// Space that a longer first key left unused in the arena would stay allocated forever.
		if cap(n.keys)-len(n.keys) > 64 {
			n.keys = append(make([]byte, 0, len(n.keys)), n.keys...)
		}
		b.push(0, n.summary(), string(n.key(0)))
	}
}

func (b *builder) push(level int, k kid, sep string) {
	if level == len(b.levels) {
		b.levels, b.seps = append(b.levels, nil), append(b.seps, nil)
	}
	b.levels[level], b.seps[level] = append(b.levels[level], k), append(b.seps[level], sep)
	if len(b.levels[level]) == maxInner {
		b.close(level)
	}
}

// close creates a parent for the waiting children of a level.
func (b *builder) close(level int) {
	kids, seps := b.levels[level], b.seps[level]
	b.levels[level], b.seps[level] = nil, nil
	if len(kids) > 0 {
		n := &node{gen: b.gen, kids: kids, seps: seps}
		b.push(level+1, n.summary(), seps[0])
	}
}

// finish returns the root.
func (b *builder) finish() kid {
	b.flushLeaf()
	if len(b.levels) == 0 {
		return kid{n: &node{gen: b.gen}, garb: never}
	}
	for level := 0; ; level++ {
		if level == len(b.levels)-1 && len(b.levels[level]) == 1 {
			return b.levels[level][0]
		}
		b.close(level)
	}
}
