package v2store

import (
	"container/heap"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/engine"
	"quorate/internal/legacy/v2request"
	"quorate/internal/metrics"
)

// ErrMethod is returned for a request whose method is not PUT, POST, DELETE, SYNC or QGET.
var ErrMethod = errors.New("etcdserver: unknown method")

// earliest is the first second of the year 2000. No node is given an earlier expiration:
// such times come from a TTL so large that the addition overflowed.
var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()

// change is one request being applied.
type change struct {
	*Store
	b engine.Batch
	// at is the time of the request in Unix ns, for the remaining TTL; shown is the same
	// or, if the proposer did not set it, this member's time.
	at, shown int64
	refresh   bool
	expire    int64
}

// Apply applies a request and writes its changes to b. A SYNC removes expired nodes, and
// has no event. Errors are of type *Error, or ErrMethod.
func (s *Store) Apply(b engine.Batch, r *v2request.Request) (*Event, error) {
	if r.Method == "QGET" {
		return s.Get(r.Path, r.Recursive, r.Sorted)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &change{Store: s, b: b, at: r.Time, shown: r.Time, expire: r.Expiration}
	if c.at == 0 {
		c.shown = s.opts.Now().UnixNano()
	}
	if r.Method == "SYNC" {
		c.sweep(r.Time)
		return nil, nil
	}
	action, do := c.plan(r)
	if do == nil {
		return nil, ErrMethod
	}
	c.refresh = r.Refresh != nil && *r.Refresh && (action == Set || action == Update || action == CompareAndSwap)
	e, err := do()
	c.count(action, err)
	if s.written {
		s.putState(b)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// plan classifies a request and returns the function that executes it.
func (c *change) plan(r *v2request.Request) (action string, do func() (*Event, *Error)) {
	p := clean(r.Path)
	conditions := r.PrevIndex > 0 || r.PrevValue != ""
	swap := func() (*Event, *Error) { return c.swap(p, r.PrevValue, r.PrevIndex, r.Val) }
	switch {
	case r.Method == "POST":
		p = childPath(p, fmt.Sprintf("%020d", c.index+1))
		return Create, func() (*Event, *Error) { return c.create(p, Create, r.Dir, r.Val) }
	case r.Method == "DELETE" && conditions:
		return CompareAndDelete, func() (*Event, *Error) { return c.compareAndDelete(p, r.PrevValue, r.PrevIndex) }
	case r.Method == "DELETE":
		return Delete, func() (*Event, *Error) { return c.delete(p, r.Dir || r.Recursive, r.Recursive) }
	case r.Method != "PUT":
		return "", nil
	case r.PrevExist != nil && !*r.PrevExist:
		return Create, func() (*Event, *Error) { return c.create(p, Create, r.Dir, r.Val) }
	case conditions:
		return CompareAndSwap, swap
	case r.PrevExist != nil:
		return Update, func() (*Event, *Error) { return c.update(p, r.Val) }
	}
	return Set, func() (*Event, *Error) { return c.set(p, r.Dir, r.Val) }
}

func (c *change) count(action string, err *Error) {
	metrics.DebuggingStoreWritesTotal.WithLabelValues(action).Inc()
	if !c.written {
		return // refused, see Written
	}
	c.stats.count(action, err)
	if action == Create && err != nil && err.Code == CodeNotDir {
		// etcd counts a create that fails because of a file in its way twice.
		c.stats.SetsFail++
		metrics.DebuggingStoreWritesTotal.WithLabelValues(action).Inc()
	}
}

// readOnly reports whether clients must not write to a path.
func readOnly(p string) bool {
	return p == "/" || p == "/0" || p == "/1" || strings.HasPrefix(p, "/0/")
}

// fits rejects a path beyond the limits.
func fits(p string) *Error {
	if len(p) > MaxPath || strings.Count(p, "/") > MaxDepth {
		return internal(rpctypes.ErrorDesc(rpctypes.ErrGRPCRequestTooLarge))
	}
	return nil
}

// room rejects changes that would let the tree grow beyond its limits.
func (s *Store) room(nodes int, bytes int64) *Error {
	if nodes > 0 && s.nodes+nodes > MaxNodes || bytes > 0 && s.bytes+bytes > MaxBytes {
		return internal(rpctypes.ErrorDesc(rpctypes.ErrGRPCNoSpace))
	}
	return nil
}

func internal(cause string) *Error { return NewError(CodeRaftInternal, cause, 0) }

func (c *change) set(p string, dir bool, value string) (*Event, *Error) {
	n, err := c.find(p)
	if err != nil && (err.Code != CodeKeyNotFound || c.refresh) {
		return nil, err
	}
	if c.refresh {
		value = n.value
	}
	return c.create(p, Set, dir, value)
}

// create creates a node, and the directories that lead to it. A set may replace a file.
func (c *change) create(p, action string, dir bool, value string) (*Event, *Error) {
	if readOnly(p) {
		return nil, NewError(CodeRootReadOnly, "/", c.index)
	}
	if err := fits(p); err != nil {
		return nil, err
	}
	if dir {
		value = ""
	}
	names := elements(p)
	last := len(names) - 1
	// How far the existing directories reach.
	parent, depth, here := c.root, 0, ""
	for depth < last && parent.children[names[depth]] != nil {
		parent = parent.children[names[depth]]
		here += "/" + names[depth]
		depth++
		if !parent.dir() {
			return nil, NewError(CodeNotDir, here, c.index)
		}
	}
	var old *node
	if depth == last {
		old = parent.children[names[last]]
	}
	if old != nil && action == Create {
		return nil, NewError(CodeNodeExists, p, c.index)
	}
	if old != nil && old.dir() {
		return nil, NewError(CodeNotFile, p, c.index)
	}
	if err := c.roomFor(here, names[depth:], old, value); err != nil {
		return nil, err
	}
	e := c.event(action, p, c.index+1)
	if old != nil {
		e.PrevNode = old.seen(p, c.shown)
		c.drop(old, p)
	}
	c.index++
	for ; depth < last; depth++ {
		here += "/" + names[depth]
		parent = c.add(parent, here, &node{name: names[depth], children: map[string]*node{}})
	}
	n := &node{name: names[last], value: value}
	if dir {
		n.children = map[string]*node{}
	}
	if c.expire >= earliest {
		n.expire = c.expire
	}
	c.add(parent, p, n)
	e.Node = n.seen(p, c.shown)
	return c.done(e, nil), nil
}

// roomFor checks that there is room for the nodes names below a directory, the last one
// with a value and possibly replacing old.
func (s *Store) roomFor(dir string, names []string, old *node, value string) *Error {
	nodes, bytes := len(names), int64(len(value))
	at := int64(len(dir))
	for _, name := range names {
		at += int64(1 + len(name))
		bytes += at
	}
	if old != nil {
		nodes, bytes = 0, int64(len(value)-len(old.value))
	}
	return s.room(nodes, bytes)
}

// add links a new node to parent.
func (c *change) add(parent *node, p string, n *node) *node {
	n.parent, n.created, n.modified = parent, c.index, c.index
	parent.children[n.name] = n
	c.nodes++
	c.bytes += size(p, n.value)
	if n.expire != 0 {
		heap.Push(&c.due, n)
	}
	c.put(p, n)
	return n
}

func (c *change) put(p string, n *node) { c.b.Set(nodeKey(p), appendNode(nil, n)) }

// drop removes a node with everything below it, and returns the paths below it if there are
// watchers.
func (c *change) drop(n *node, p string) (gone []string) {
	watched := n.dir() && c.hub.number() > 0
	c.forget(n, p, func(below string) {
		if watched && below != p {
			gone = append(gone, below)
		}
	})
	delete(n.parent.children, n.name)
	c.b.Delete(nodeKey(p))
	if n.dir() {
		c.b.DeleteRange(below(p))
	}
	return gone
}

// forget removes n and everything below it from the totals and the queue.
func (c *change) forget(n *node, p string, fn func(p string)) {
	for name, child := range n.children {
		c.forget(child, childPath(p, name), fn)
	}
	c.nodes--
	c.bytes -= size(p, n.value)
	if n.expire != 0 {
		heap.Remove(&c.due, n.due)
	}
	fn(p)
}

func (c *change) swap(p, prevValue string, prevIndex uint64, value string) (*Event, *Error) {
	n, err := c.existing(p)
	if err != nil {
		return nil, err
	}
	if n.dir() {
		return nil, NewError(CodeNotFile, p, c.index)
	}
	if err := c.compare(n, prevValue, prevIndex); err != nil {
		return nil, err
	}
	return c.write(CompareAndSwap, p, n, value)
}

func (c *change) update(p, value string) (*Event, *Error) {
	n, err := c.existing(p)
	if err != nil {
		return nil, err
	}
	if n.dir() && value != "" {
		return nil, NewError(CodeNotFile, p, c.index)
	}
	if refuse := c.opts.RefuseDirUpdate; n.dir() && refuse != nil && refuse() {
		return nil, internal(fmt.Sprintf("nodePath %s : Not a file ()", p))
	}
	return c.write(Update, p, n, value)
}

// existing returns the node of a path that clients may change.
func (c *change) existing(p string) (*node, *Error) {
	if readOnly(p) {
		return nil, NewError(CodeRootReadOnly, "/", c.index)
	}
	return c.find(p)
}

// compare checks the given conditions against a file.
func (c *change) compare(n *node, value string, index uint64) *Error {
	var causes []string
	if value != "" && value != n.value {
		causes = append(causes, fmt.Sprintf("[%s != %s]", value, n.value))
	}
	if index != 0 && index != n.modified {
		causes = append(causes, fmt.Sprintf("[%d != %d]", index, n.modified))
	}
	if causes == nil {
		return nil
	}
	return NewError(CodeCompareFailed, strings.Join(causes, " "), c.index)
}

// write changes the value of a file, and the expiration of a node.
func (c *change) write(action, p string, n *node, value string) (*Event, *Error) {
	if c.refresh || n.dir() {
		value = n.value
	}
	grown := int64(len(value) - len(n.value))
	if err := c.room(0, grown); err != nil {
		return nil, err
	}
	e := c.event(action, p, n.created)
	e.PrevNode = n.seen(p, c.shown)
	c.index++
	if !n.dir() { // the index of a directory stays, as in etcd
		n.value, n.modified = value, c.index
		c.bytes += grown
	}
	c.expires(n)
	c.put(p, n)
	e.Node = n.seen(p, c.shown)
	e.Node.ModifiedIndex = c.index
	return c.done(e, nil), nil
}

// expires sets a node's expiration from the request.
func (c *change) expires(n *node) {
	if n.expire != 0 {
		heap.Remove(&c.due, n.due)
	}
	if n.expire = c.expire; n.expire != 0 {
		heap.Push(&c.due, n)
	}
}

func (c *change) delete(p string, dir, recursive bool) (*Event, *Error) {
	n, err := c.existing(p)
	if err != nil {
		return nil, err
	}
	if n.dir() && !dir {
		return nil, NewError(CodeNotFile, p, c.index)
	}
	if n.dir() && len(n.children) > 0 && !recursive {
		return nil, NewError(CodeDirNotEmpty, p, c.index)
	}
	return c.remove(Delete, p, n), nil
}

func (c *change) compareAndDelete(p, prevValue string, prevIndex uint64) (*Event, *Error) {
	n, err := c.find(p)
	if err != nil {
		return nil, err
	}
	if n.dir() {
		return nil, NewError(CodeNotFile, p, c.index)
	}
	if err := c.compare(n, prevValue, prevIndex); err != nil {
		return nil, err
	}
	return c.remove(CompareAndDelete, p, n), nil
}

// remove removes a node, with everything below it, in one step.
func (c *change) remove(action, p string, n *node) *Event {
	e := c.event(action, p, n.created)
	e.PrevNode = n.seen(p, c.shown)
	e.Node.Dir = n.dir()
	gone := c.drop(n, p)
	c.index++
	return c.done(e, gone)
}

// sweep removes the nodes expired by a given time, the oldest first.
func (c *change) sweep(until int64) {
	swept := false
	for len(c.due) > 0 && c.due[0].expire <= until {
		n := c.due[0]
		c.remove(Expire, n.path(), n)
		c.stats.ExpireCount++
		metrics.DebuggingStoreExpiresTotal.Inc()
		swept = true
	}
	if swept {
		c.putState(c.b)
	}
}

// event starts the event that takes the next index.
func (c *change) event(action, p string, created uint64) *Event {
	return &Event{Action: action, Node: &Node{Key: p, ModifiedIndex: c.index + 1, CreatedIndex: created},
		EtcdIndex: c.index + 1, Refresh: c.refresh}
}

// done passes an event, whose index is already the store's, to the history and to watchers.
// A refresh is added to the history only.
func (c *change) done(e *Event, gone []string) *Event {
	c.begin(c.b)
	c.remember(c.b, e, c.at)
	if !e.Refresh {
		c.hub.notify(e, gone)
	}
	return e
}
