package mvcc

import (
	"bytes"
	"encoding/binary"
	"math"
	"sort"

	"quorate/internal/ids"
	"quorate/internal/lease"
)

// The index: a copy-on-write counted B-tree from key to revisions.
//
// A node carries the generation in which it was created. The writer changes nodes of
// its own generation in place and copies all others first; taking a root for readers
// increments the generation, so that root never changes. Readers hold a root and take no lock.
//
// Leaves are flat: the keys of a leaf are in one byte arena and its entries contain no
// pointers, so a static million keys are about 40,000 objects for the garbage
// collector, not millions. Rare data (leases, superseded revisions) is in side slices
// that most leaves do not have.
//
// A parent stores a summary of each child's subtree: the number of live keys and the
// length of their records (for ranks, counts, and the length of an answer before it is
// read), the newest revision (a count at an older revision skips what has not changed
// since), and the least revision at which a compaction removes something
// (a compaction visits only leaves with garbage).

const (
	maxLeaf  = 32      // entries of a leaf
	maxInner = 32      // children of an inner node
	maxArena = 1 << 16 // bytes of keys at which a leaf is split early

	tombBit = 1 << 31
	maxSub  = tombBit - 1

	never = math.MaxInt64 // the garbage revision of a subtree without garbage
)

// meta is one revision of one key.
type meta struct {
	mod, create ids.Revision
	version     int64
	sub         uint32 // the top bit marks a tombstone
	size        uint32 // length of the record; unused for a tombstone
}

func (m meta) tomb() bool    { return m.sub&tombBit != 0 }
func (m meta) rev() Revision { return Revision{m.mod, int64(m.sub & maxSub)} }

type node struct {
	gen  uint64
	kids []kid    // inner node: children in key order
	seps []string // inner node: seps[i] <= keys of kids[i]; seps[0] is not used; never changed in place

	keys   []byte     // leaf: length-prefixed keys, append only, shared by copies
	offs   []uint32   // leaf: parallel to ents, the offsets of the keys in keys; shared by copies until one inserts
	ents   []meta     // leaf: newest revision of each key, in key order
	leases []lease.ID // leaf: parallel to ents, or nil
	hist   [][]meta   // leaf: parallel to ents, or nil; older revisions, ascending, append only
}

// kid is a child with the summary of its subtree.
type kid struct {
	n      *node
	extent              // of the keys whose newest revision is not a tombstone
	maxMod ids.Revision // newest main revision
	garb   ids.Revision // least compaction revision that removes something, or never
}

// extent is the number of live keys, and the length of their records as elements of an answer.
type extent struct{ live, bytes int64 }

func (e *extent) add(x extent) { e.live, e.bytes = e.live+x.live, e.bytes+x.bytes }

// extent returns that of the key that has m as its newest revision.
func (m *meta) extent() extent {
	if m.tomb() {
		return extent{}
	}
	return extent{1, int64(elemLen(int(m.size)))}
}

// from returns what changes if the newest revision was old.
func (e extent) from(old extent) extent { return extent{e.live - old.live, e.bytes - old.bytes} }

// tree is the writer's side of the index. Not safe for concurrent use.
type tree struct {
	root kid
	gen  uint64
	// pinGen is the generation of the newest pinned root: copying a node that is not
	// newer keeps the old node in memory. kept is the sum of those bytes.
	pinGen uint64
	kept   int64
	olds   []meta // memory for histories of one revision
}

func newTree() *tree {
	return &tree{root: kid{n: &node{gen: 1}, garb: never}, gen: 1}
}

// newLeaf returns a leaf with capacity for keys of size bytes in total.
func newLeaf(gen uint64, size, keys int) *node {
	return &node{gen: gen, keys: make([]byte, 0, size), offs: make([]uint32, 0, keys), ents: make([]meta, 0, keys)}
}

func (n *node) leaf() bool { return n.kids == nil }

func (n *node) key(i int) []byte {
	b := n.keys[n.offs[i]:]
	if l := int(b[0]); l < 0x80 {
		return b[1 : 1+l : 1+l]
	}
	l, w := binary.Uvarint(b)
	return b[w : w+int(l) : w+int(l)]
}

func (n *node) lease(i int) lease.ID {
	if n.leases == nil {
		return 0
	}
	return n.leases[i]
}

func (n *node) history(i int) []meta {
	if n.hist == nil {
		return nil
	}
	return n.hist[i]
}

// search returns the position of key in a leaf, or where it would be inserted.
func (n *node) search(key []byte) (int, bool) {
	lo, hi := 0, len(n.ents)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := bytes.Compare(n.key(mid), key); {
		case c < 0:
			lo = mid + 1
		case c > 0:
			hi = mid
		default:
			return mid, true
		}
	}
	return lo, false
}

// child returns the child of an inner node that covers key.
func (n *node) child(key []byte) int {
	lo, hi := 1, len(n.seps)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if n.seps[mid] <= string(key) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// at returns the newest revision of entry i with main <= rev, if there is one and it
// is not a tombstone.
func (n *node) at(i int, rev ids.Revision) (meta, bool) {
	if m := n.ents[i]; m.mod <= rev {
		return m, !m.tomb()
	}
	h := n.history(i)
	if j := newest(h, rev); j >= 0 {
		return h[j], !h[j].tomb()
	}
	return meta{}, false
}

// newest returns the position of the newest revision with main <= rev, or -1.
func newest(h []meta, rev ids.Revision) int {
	return sort.Search(len(h), func(i int) bool { return h[i].mod > rev }) - 1
}

// garbage returns the least compaction revision that removes a revision of entry i:
// the one that supersedes the oldest, or for a tombstone the following one.
func (n *node) garbage(i int) ids.Revision {
	cur := n.ents[i]
	h := n.history(i)
	if len(h) == 0 {
		if cur.tomb() {
			return cur.mod + 1
		}
		return never
	}
	next := cur.mod
	if len(h) > 1 {
		next = h[1].mod
	}
	if h[0].tomb() {
		return min(next, h[0].mod+1)
	}
	return next
}

// summary computes the summary of a node from its entries or children.
func (n *node) summary() kid {
	k := kid{n: n, garb: never}
	for i := range n.ents {
		m := &n.ents[i]
		k.extent.add(m.extent())
		k.maxMod = max(k.maxMod, m.mod)
		k.garb = min(k.garb, n.garbage(i))
	}
	for i := range n.kids {
		c := &n.kids[i]
		k.extent.add(c.extent)
		k.maxMod = max(k.maxMod, c.maxMod)
		k.garb = min(k.garb, c.garb)
	}
	return k
}

// bytes approximates the memory of a copy of the node, without shared slices.
func (n *node) bytes() int64 {
	return 192 + int64(len(n.kids))*40 + int64(cap(n.ents))*36 + int64(len(n.leases))*8 + int64(len(n.hist))*24
}

// own returns n itself if the writer may change it, otherwise a copy with capacity for
// extra entries.
func (t *tree) own(n *node, extra int) *node {
	if n.gen == t.gen {
		return n
	}
	if n.gen <= t.pinGen {
		t.kept += n.bytes()
	}
	c := *n
	c.gen = t.gen
	if n.leaf() {
		c.ents = append(make([]meta, 0, len(n.ents)+extra), n.ents...)
		c.offs = n.offs[:len(n.offs):len(n.offs)] // so that insert copies them
		if n.leases != nil {
			c.leases = append(make([]lease.ID, 0, len(n.leases)+extra), n.leases...)
		}
		if n.hist != nil {
			c.hist = append(make([][]meta, 0, len(n.hist)+extra), n.hist...)
		}
	} else {
		c.kids = append(make([]kid, 0, len(n.kids)), n.kids...)
	}
	return &c
}

// step is an inner node on the path to a leaf, and the index of the child taken.
type step struct {
	n *node
	i int
}

// descend makes the inner nodes on the path to key writable and returns them with the
// unchanged leaf.
func (t *tree) descend(path []step, key []byte) ([]step, *node) {
	n := t.root.n
	for !n.leaf() {
		n = t.attach(path, n, 0)
		i := n.child(key)
		path = append(path, step{n, i})
		n = n.kids[i].n
	}
	return path, n
}

// attach makes the node at the end of a writable path writable too.
func (t *tree) attach(path []step, n *node, extra int) *node {
	n = t.own(n, extra)
	if len(path) == 0 {
		t.root.n = n
	} else {
		last := path[len(path)-1]
		last.n.kids[last.i].n = n
	}
	return n
}

// note updates the summaries above a leaf in which one entry got revision mod.
func (t *tree) note(path []step, more extent, mod, garb ids.Revision) {
	t.root.note(more, mod, garb)
	for _, s := range path {
		s.n.kids[s.i].note(more, mod, garb)
	}
}

func (k *kid) note(more extent, mod, garb ids.Revision) {
	k.extent.add(more)
	k.maxMod = max(k.maxMod, mod)
	k.garb = min(k.garb, garb)
}

// change is the effect of a put or delete on the index.
type change struct {
	cur       meta     // what the key has now
	prev      meta     // what it had before; a tombstone or the zero value if had is false
	prevLease lease.ID // the lease it had before
	had       bool     // the key was live
}

// put adds a new revision of key with a value of valueLen bytes and derives create
// revision, version and the length of the record.
func (t *tree) put(key []byte, mod ids.Revision, sub uint32, lease lease.ID, valueLen int) change {
	var buf [8]step
	path, n := t.descend(buf[:0], key)
	i, found := n.search(key)
	cur := meta{mod: mod, create: mod, version: 1, sub: sub}
	if !found {
		cur.size = recordLen(len(key), valueLen, cur, lease)
		n = t.attach(path, n, 4)
		n.insert(i, key, cur, lease)
		t.note(path, cur.extent(), mod, never)
		if len(n.ents) > maxLeaf || len(n.keys) > maxArena && len(n.ents) > 1 {
			t.split(path, n, i)
		}
		return change{cur: cur}
	}
	n = t.attach(path, n, 0)
	ch := change{prev: n.ents[i], prevLease: n.lease(i)}
	ch.had = !ch.prev.tomb()
	if ch.had {
		cur.create, cur.version = ch.prev.create, ch.prev.version+1
	}
	cur.size = recordLen(len(key), valueLen, cur, lease)
	t.replace(n, i, cur, lease)
	ch.cur = cur
	t.note(path, cur.extent().from(ch.prev.extent()), mod, mod)
	return ch
}

// del adds a tombstone for key. It returns false if key is not live.
func (t *tree) del(key []byte, mod ids.Revision, sub uint32) (ch change, ok bool) {
	if n, i, found := t.root.n.find(key); !found || n.ents[i].tomb() {
		return ch, false
	}
	var buf [8]step
	path, n := t.descend(buf[:0], key)
	i, _ := n.search(key)
	n = t.attach(path, n, 0)
	ch = change{prev: n.ents[i], prevLease: n.lease(i), had: true}
	ch.cur = meta{mod: mod, sub: sub | tombBit}
	t.replace(n, i, ch.cur, 0)
	t.note(path, extent{}.from(ch.prev.extent()), mod, mod)
	return ch, true
}

// replace moves the newest revision of entry i of a leaf to its history.
func (t *tree) replace(n *node, i int, cur meta, lease lease.ID) {
	if n.hist == nil {
		n.hist = make([][]meta, len(n.ents), cap(n.ents))
	}
	if n.hist[i] == nil {
		n.hist[i] = t.history()
	}
	// Appending beyond the length that older roots see does not affect them.
	n.hist[i] = append(n.hist[i], n.ents[i])
	n.ents[i] = cur
	n.setLease(i, lease)
}

// oldsPiece is the number of revisions for which memory is allocated at once.
const oldsPiece = 64

// history returns an empty history with room for one revision. Where most keys have been written
// twice, an object for each history would be most of what the garbage collector visits. A piece
// holds revisions that were superseded one after the other, which a compaction drops together.
func (t *tree) history() []meta {
	if len(t.olds) == 0 {
		t.olds = make([]meta, oldsPiece)
	}
	h := t.olds[:0:1]
	t.olds = t.olds[1:]
	return h
}

func (n *node) setLease(i int, id lease.ID) {
	if n.leases == nil {
		if id == 0 {
			return
		}
		n.leases = make([]lease.ID, len(n.ents), cap(n.ents))
	}
	n.leases[i] = id
}

// insert adds a key at position i of a leaf.
func (n *node) insert(i int, key []byte, m meta, lease lease.ID) {
	n.offs = insertAt(n.offs, i, uint32(len(n.keys)))
	n.keys = appendKey(n.keys, key)
	n.ents = insertAt(n.ents, i, m)
	if n.leases != nil {
		n.leases = insertAt(n.leases, i, 0)
	}
	if n.hist != nil {
		n.hist = insertAt(n.hist, i, nil)
	}
	n.setLease(i, lease)
}

// insertAt grows by a few elements at a time: most leaves do not grow, and doubling
// would waste a third of the index.
func insertAt[T any](s []T, i int, v T) []T {
	if len(s) == cap(s) {
		s = append(make([]T, 0, len(s)+8), s...)
	}
	s = append(s, v)
	copy(s[i+1:], s[i:])
	s[i] = v
	return s
}

func appendKey(arena, key []byte) []byte {
	need := uvarintLen(uint64(len(key))) + len(key)
	if cap(arena)-len(arena) < need {
		arena = append(make([]byte, 0, len(arena)+need+min(len(arena)/4, 256)), arena...)
	}
	arena = binary.AppendUvarint(arena, uint64(len(key)))
	return append(arena, key...)
}

// slice returns a new leaf with the entries [a, b) and its own arena.
func (n *node) slice(gen uint64, a, b int) *node {
	size := 0
	for i := a; i < b; i++ {
		l := len(n.key(i))
		size += uvarintLen(uint64(l)) + l
	}
	c := newLeaf(gen, size, b-a)
	for i := a; i < b; i++ {
		c.take(n, i)
	}
	return c
}

// take appends entry i of another leaf.
func (n *node) take(from *node, i int) {
	n.offs = append(n.offs, uint32(len(n.keys)))
	n.keys = appendKey(n.keys, from.key(i))
	n.ents = append(n.ents, from.ents[i])
	at := len(n.ents) - 1
	if n.leases != nil {
		n.leases = append(n.leases, 0)
	}
	n.setLease(at, from.lease(i))
	h := from.history(i)
	if n.hist == nil && len(h) > 0 {
		n.hist = make([][]meta, at, cap(n.ents))
	}
	if n.hist != nil {
		n.hist = append(n.hist, h)
	}
}

// split divides a full leaf that got its newest entry at position i, and then the
// inner nodes above it that have become too full.
func (t *tree) split(path []step, n *node, i int) {
	mid := len(n.ents) / 2
	if i == len(n.ents)-1 {
		mid = i // keys arrive in order: leave the left leaf full
	}
	l, r := n.slice(t.gen, 0, mid).summary(), n.slice(t.gen, mid, len(n.ents)).summary()
	sep := string(r.n.key(0))
	for p := len(path) - 1; p >= 0; p-- {
		in, at := path[p].n, path[p].i
		in.kids[at] = l
		in.kids = insertAt(in.kids, at+1, r)
		seps := make([]string, 0, len(in.seps)+1)
		seps = append(seps, in.seps[:at+1]...)
		in.seps = append(append(seps, sep), in.seps[at+1:]...)
		if len(in.kids) <= maxInner {
			return
		}
		mid := len(in.kids) / 2
		if at == len(in.kids)-2 {
			mid = len(in.kids) - 2
		}
		sep = in.seps[mid]
		right := &node{gen: t.gen, kids: append([]kid(nil), in.kids[mid:]...), seps: append([]string(nil), in.seps[mid:]...)}
		left := &node{gen: t.gen, kids: append([]kid(nil), in.kids[:mid]...), seps: append([]string(nil), in.seps[:mid]...)}
		l, r = left.summary(), right.summary()
	}
	root := &node{gen: t.gen, kids: []kid{l, r}, seps: []string{"", sep}}
	t.root = root.summary()
}

// --- Reading. Everything below works on any root and changes nothing.

// find returns the leaf and position of key.
func (n *node) find(key []byte) (*node, int, bool) {
	for !n.leaf() {
		n = n.kids[n.child(key)].n
	}
	i, ok := n.search(key)
	return n, i, ok
}
