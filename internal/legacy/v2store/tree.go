package v2store

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"
)

// node is a node of the tree. A directory has a children map, even if it is empty; a file
// has a value and no map.
type node struct {
	name              string
	parent            *node // nil: the root
	children          map[string]*node
	value             string
	created, modified uint64
	expire            int64 // Unix ns, 0: never
	due               int   // its place in the queue of expiring nodes
}

func (n *node) dir() bool { return n.children != nil }

// path returns the full path, beginning with a slash.
func (n *node) path() string {
	if n.parent == nil {
		return "/"
	}
	var names []string
	for ; n.parent != nil; n = n.parent {
		names = append(names, n.name)
	}
	names = append(names, "")
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// size is a node's share of MaxBytes.
func size(path, value string) int64 { return int64(len(path) + len(value)) }

// clean returns the canonical form of a path.
func clean(p string) string { return path.Join("/", p) }

// elements returns the names on the way from the root to a clean path.
func elements(p string) []string {
	if p == "/" {
		return nil
	}
	return strings.Split(p[1:], "/")
}

// childPath joins a directory's path and a name.
func childPath(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

// hidden reports whether listings leave out a node of this name.
func hidden(name string) bool { return strings.HasPrefix(name, "_") }

// find returns the node at a clean path.
func (s *Store) find(p string) (*node, *Error) {
	n := s.root
	for _, name := range elements(p) {
		if !n.dir() {
			return nil, NewError(CodeNotDir, n.path(), s.index)
		}
		c := n.children[name]
		if c == nil {
			return nil, NewError(CodeKeyNotFound, childPath(n.path(), name), s.index)
		}
		n = c
	}
	return n, nil
}

// seen returns a node as clients see it, without its children.
func (n *node) seen(p string, at int64) *Node {
	out := &Node{Key: p, ModifiedIndex: n.modified, CreatedIndex: n.created}
	if n.dir() {
		out.Dir = true
	} else {
		v := n.value
		out.Value = &v
	}
	out.times(n.expire, at)
	return out
}

// list returns the children of n in the order of their names and, if recursive, everything
// below them. It recurses at most MaxDepth levels.
func (n *node) list(p string, recursive bool, at int64) []*Node {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		if !hidden(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	out := make([]*Node, 0, len(names))
	for _, name := range names {
		c := n.children[name]
		cp := childPath(p, name)
		x := c.seen(cp, at)
		if recursive && c.dir() {
			x.Nodes = c.list(cp, recursive, at)
		}
		out = append(out, x)
	}
	return out
}

// each calls fn for every node below n, and for n itself last.
func (n *node) each(fn func(*node)) {
	for _, c := range n.children {
		c.each(fn)
	}
	fn(n)
}

// queue holds the expiring nodes, the first to expire at the front. Nodes of the same time
// are ordered by their paths, so that all members remove them in the same order. It
// implements heap.Interface.
type queue []*node

// byDue is the order in which nodes expire.
func byDue(a, b *node) int {
	if a.expire != b.expire {
		return cmp.Compare(a.expire, b.expire)
	}
	return strings.Compare(a.path(), b.path())
}

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	return byDue(q[i], q[j]) < 0
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].due, q[j].due = i, j
}

func (q *queue) Push(x any) {
	n := x.(*node)
	n.due = len(*q)
	*q = append(*q, n)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	n := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return n
}

// walk calls fn for n and everything below it: a directory before its children, children in
// the order of their names.
func (n *node) walk(p string, fn func(p string, n *node)) {
	fn(p, n)
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		n.children[name].walk(childPath(p, name), fn)
	}
}
