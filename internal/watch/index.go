package watch

// spec is what watchers must have in common to share responses.
type spec struct {
	key, end string
	open     bool // the range has no upper end
	prevKV   bool
	noPut    bool
	noDelete bool
}

// single reports whether the range is a single key.
func (s *spec) single() bool { return s.end == "" && !s.open }

// group is the set of watchers with the same spec. They share matching, collecting and
// encoding. Guarded by Hub.mu.
type group struct {
	spec
	watchers []*watcher
	batch    []*event // matching events of the current Publish or scan
}

// wants applies the filters.
func (g *group) wants(del bool) bool {
	if del {
		return !g.noDelete
	}
	return !g.noPut
}

// index finds the groups that watch a key. Single-key groups are in a hash map, range groups
// in an interval tree, so that a lookup takes O(log ranges + matches).
type index struct {
	groups map[spec]*group
	exact  map[string][]*group
	ranges *node
}

func newIndex() *index {
	return &index{groups: make(map[spec]*group), exact: make(map[string][]*group)}
}

func (x *index) empty() bool { return len(x.groups) == 0 }

// group returns the group for s, creating it if necessary.
func (x *index) group(s spec) *group {
	g := x.groups[s]
	if g != nil {
		return g
	}
	g = &group{spec: s}
	x.groups[s] = g
	if s.single() {
		x.exact[s.key] = append(x.exact[s.key], g)
	} else {
		x.ranges = x.ranges.insert(g)
	}
	return g
}

// drop removes an empty group.
func (x *index) drop(g *group) {
	delete(x.groups, g.spec)
	if !g.single() {
		x.ranges = x.ranges.remove(g)
		return
	}
	if left := without(x.exact[g.key], g); len(left) > 0 {
		x.exact[g.key] = left
	} else {
		delete(x.exact, g.key)
	}
}

// match appends the groups whose range contains key.
func (x *index) match(dst []*group, key []byte) []*group {
	dst = append(dst, x.exact[string(key)]...)
	return x.ranges.stab(dst, key)
}

func without(gs []*group, g *group) []*group {
	for i := range gs {
		if gs[i] == g {
			gs[i] = gs[len(gs)-1]
			gs[len(gs)-1] = nil
			return gs[:len(gs)-1]
		}
	}
	return gs
}

// bound is the upper end of a range.
type bound struct {
	key  string
	open bool
}

func (b bound) compare(c bound) int {
	switch {
	case b.open || c.open:
		return btoi(b.open) - btoi(c.open)
	case b.key < c.key:
		return -1
	case b.key > c.key:
		return 1
	}
	return 0
}

// after reports whether key is below the bound.
func (b bound) after(key []byte) bool { return b.open || string(key) < b.key }

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// node is a node of an AVL tree of ranges, ordered by start, then end. Each node knows the
// greatest end in its subtree, so that a search skips subtrees that end before the key. A nil
// node is an empty tree.
type node struct {
	start       string
	end         bound
	max         bound
	groups      []*group
	left, right *node
	height      int
}

func (n *node) h() int {
	if n == nil {
		return 0
	}
	return n.height
}

func (n *node) order(g *group) int {
	switch {
	case g.key < n.start:
		return -1
	case g.key > n.start:
		return 1
	}
	return bound{g.end, g.open}.compare(n.end)
}

func (n *node) stab(dst []*group, key []byte) []*group {
	for n != nil && n.max.after(key) {
		dst = n.left.stab(dst, key)
		if string(key) < n.start {
			return dst
		}
		if n.end.after(key) {
			dst = append(dst, n.groups...)
		}
		n = n.right
	}
	return dst
}

func (n *node) insert(g *group) *node {
	if n == nil {
		end := bound{g.end, g.open}
		return &node{start: g.key, end: end, max: end, groups: []*group{g}, height: 1}
	}
	switch c := n.order(g); {
	case c < 0:
		n.left = n.left.insert(g)
	case c > 0:
		n.right = n.right.insert(g)
	default:
		n.groups = append(n.groups, g)
		return n
	}
	return n.balance()
}

func (n *node) remove(g *group) *node {
	if n == nil {
		return nil
	}
	switch c := n.order(g); {
	case c < 0:
		n.left = n.left.remove(g)
	case c > 0:
		n.right = n.right.remove(g)
	default:
		if n.groups = without(n.groups, g); len(n.groups) > 0 {
			return n
		}
		if n.left == nil {
			return n.right
		}
		if n.right == nil {
			return n.left
		}
		next := n.right
		for next.left != nil {
			next = next.left
		}
		n.start, n.end, n.groups = next.start, next.end, next.groups
		n.right = n.right.removeMin()
	}
	return n.balance()
}

func (n *node) removeMin() *node {
	if n.left == nil {
		return n.right
	}
	n.left = n.left.removeMin()
	return n.balance()
}

// balance restores height, max and the AVL property of n. Its children must have them.
func (n *node) balance() *node {
	switch d := n.left.h() - n.right.h(); {
	case d > 1:
		if n.left.left.h() < n.left.right.h() {
			n.left = n.left.rotateLeft()
		}
		return n.rotateRight()
	case d < -1:
		if n.right.right.h() < n.right.left.h() {
			n.right = n.right.rotateRight()
		}
		return n.rotateLeft()
	}
	n.update()
	return n
}

func (n *node) update() {
	n.height = 1 + max(n.left.h(), n.right.h())
	n.max = n.end
	for _, c := range [...]*node{n.left, n.right} {
		if c != nil && c.max.compare(n.max) > 0 {
			n.max = c.max
		}
	}
}

func (n *node) rotateRight() *node {
	l := n.left
	n.left, l.right = l.right, n
	n.update()
	l.update()
	return l
}

func (n *node) rotateLeft() *node {
	r := n.right
	n.right, r.left = r.left, n
	n.update()
	r.update()
	return r
}
