package mem

import (
	"bytes"

	"quorate/internal/engine"
)

// node of a persistent treap: immutable once it is reachable from a published root.
// The priority is a hash of the key, so the shape of the tree depends on its contents
// alone.
type node struct {
	key, value  []byte
	prio        uint64
	left, right *node
}

// priority is FNV-1a with a final mix: adjacent keys get unrelated priorities.
func priority(key []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range key {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return h ^ h>>33
}

// split divides t into keys < key and keys >= key.
func split(t *node, key []byte) (l, r *node) {
	if t == nil {
		return nil, nil
	}
	c := *t
	if bytes.Compare(t.key, key) < 0 {
		c.right, r = split(t.right, key)
		return &c, r
	}
	l, c.left = split(t.left, key)
	return l, &c
}

// merge joins two trees; every key of l must be less than every key of r.
func merge(l, r *node) *node {
	switch {
	case l == nil:
		return r
	case r == nil:
		return l
	case l.prio >= r.prio:
		c := *l
		c.right = merge(l.right, r)
		return &c
	default:
		c := *r
		c.left = merge(l, r.left)
		return &c
	}
}

// insert adds n, whose key must not be in t.
func insert(t, n *node) *node {
	if t == nil || n.prio > t.prio {
		n.left, n.right = split(t, n.key)
		return n
	}
	c := *t
	if bytes.Compare(n.key, t.key) < 0 {
		c.left = insert(t.left, n)
	} else {
		c.right = insert(t.right, n)
	}
	return &c
}

// remove removes key from t and returns the size in bytes of the removed pair.
func remove(t *node, key []byte) (*node, int64) {
	if n := ceil(t, key); n == nil || !bytes.Equal(n.key, key) {
		return t, 0
	}
	return cut(t, key)
}

func cut(t *node, key []byte) (*node, int64) {
	var gone int64
	c := *t
	switch d := bytes.Compare(key, t.key); {
	case d == 0:
		return merge(t.left, t.right), int64(len(t.key) + len(t.value))
	case d < 0:
		c.left, gone = cut(t.left, key)
	default:
		c.right, gone = cut(t.right, key)
	}
	return &c, gone
}

// ceil returns the node with the least key >= key.
func ceil(t *node, key []byte) (best *node) {
	for t != nil {
		if bytes.Compare(t.key, key) >= 0 {
			best, t = t, t.left
		} else {
			t = t.right
		}
	}
	return best
}

// above returns the node with the least key > key.
func above(t *node, key []byte) (best *node) {
	for t != nil {
		if bytes.Compare(t.key, key) > 0 {
			best, t = t, t.left
		} else {
			t = t.right
		}
	}
	return best
}

// below returns the node with the greatest key < key; nil means no bound.
func below(t *node, key []byte) (best *node) {
	for t != nil {
		if key == nil || bytes.Compare(t.key, key) < 0 {
			best, t = t, t.right
		} else {
			t = t.left
		}
	}
	return best
}

// iter walks one root between lower and upper.
type iter struct {
	root         *node
	lower, upper []byte
	cur          *node
	closed       bool
}

func newIter(root *node, lower, upper []byte) engine.Iterator {
	return &iter{root: root, lower: bytes.Clone(lower), upper: bytes.Clone(upper)}
}

func (it *iter) at(n *node) bool {
	if n != nil && (bytes.Compare(n.key, it.lower) < 0 || it.upper != nil && bytes.Compare(n.key, it.upper) >= 0) {
		n = nil
	}
	it.cur = n
	return n != nil
}

func (it *iter) First() bool { return it.at(ceil(it.root, it.lower)) }
func (it *iter) Last() bool  { return it.at(below(it.root, it.upper)) }

func (it *iter) SeekGE(key []byte) bool {
	if bytes.Compare(key, it.lower) < 0 {
		key = it.lower
	}
	return it.at(ceil(it.root, key))
}

func (it *iter) Next() bool { return it.cur != nil && it.at(above(it.root, it.cur.key)) }
func (it *iter) Prev() bool { return it.cur != nil && it.at(below(it.root, it.cur.key)) }

func (it *iter) Valid() bool { return it.cur != nil }
func (it *iter) Key() []byte { return it.cur.key }

func (it *iter) Value() ([]byte, error) { return it.cur.value, nil }

func (it *iter) Error() error {
	if it.closed {
		return engine.ErrClosed
	}
	return nil
}

func (it *iter) Close() error {
	it.cur, it.root, it.closed = nil, nil, true
	return nil
}
