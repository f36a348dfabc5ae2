package v2store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"quorate/internal/engine"
)

// A dump is the JSON in which etcd up to 3.5 includes the whole store in the data of a raft
// snapshot. Members of 3.6 still read the membership from it.

// ErrDump is the cause of rejecting bytes that are not a dump of a v2 store.
var ErrDump = errors.New("not a v2 store")

// DumpNode is a node of a dump. A directory's children are not nil, even if there are none.
// Path is informative only: the names of the children decide.
type DumpNode struct {
	Path          string
	CreatedIndex  uint64               `json:",omitempty"`
	ModifiedIndex uint64               `json:",omitempty"`
	ExpireTime    time.Time            `json:",omitzero"`
	Value         string               `json:",omitempty"`
	Children      map[string]*DumpNode `json:",omitzero"`
}

// Dump is a store as etcd encodes it.
type Dump struct {
	Root           *DumpNode
	WatcherHub     *dumpHub `json:",omitempty"`
	CurrentIndex   uint64
	Stats          *Stats `json:",omitempty"`
	CurrentVersion int
}

type dumpHub struct {
	EventHistory struct {
		Queue struct {
			Events                      []*dumpEvent
			Size, Front, Back, Capacity int
		}
		StartIndex, LastIndex uint64
	}
}

type dumpEvent struct {
	Action   string `json:"action"`
	Node     *Node  `json:"node,omitempty"`
	PrevNode *Node  `json:"prevNode,omitempty"`
	Refresh  bool   `json:"refresh,omitempty"`
}

// dumpVersion is the only value of CurrentVersion that was ever written.
const dumpVersion = 2

// NewDump returns a dump with only the directories that always exist.
func NewDump() *Dump {
	d := &Dump{Root: &DumpNode{Path: "/"}, CurrentIndex: 1, CurrentVersion: dumpVersion}
	for _, name := range []string{"0", "1"} {
		d.Root.At(name).Children = map[string]*DumpNode{}
	}
	return d
}

// At returns the node at a path, creating it and the directories that lead to it.
func (n *DumpNode) At(names ...string) *DumpNode {
	for _, name := range names {
		if n.Children == nil {
			n.Children = map[string]*DumpNode{}
		}
		c := n.Children[name]
		if c == nil {
			c = &DumpNode{Path: path.Join(n.Path, name)}
			n.Children[name] = c
		}
		n = c
	}
	return n
}

// Child returns a child of n, nil if there is none or n is nil.
func (n *DumpNode) Child(names ...string) *DumpNode {
	for _, name := range names {
		if n == nil {
			return nil
		}
		n = n.Children[name]
	}
	return n
}

// Marshal returns the bytes of the dump.
func (d *Dump) Marshal() ([]byte, error) {
	b, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode v2 store: %w", err)
	}
	return b, nil
}

// Fill adds what a state of the engine holds of the store, without the membership, which
// stays unchanged. If the store was never written, d is left unchanged.
func (d *Dump) Fill(r engine.Reader) error {
	s, err := Load(r, Options{})
	if err != nil {
		return fmt.Errorf("dump v2 store: %w", err)
	}
	if s.index == 0 {
		return nil
	}
	for name, n := range s.root.children {
		if name == "0" {
			continue
		}
		n.walk("/"+name, func(p string, n *node) { d.Root.At(elements(p)...).fill(n) })
	}
	d.CurrentIndex = s.index
	st := s.stats
	d.Stats = &st
	d.WatcherHub = dumpHistory(&s.history, s.index)
	return nil
}

func (x *DumpNode) fill(n *node) {
	x.CreatedIndex, x.ModifiedIndex, x.Value = n.created, n.modified, n.value
	if n.expire != 0 {
		x.ExpireTime = time.Unix(0, n.expire).UTC()
	}
	if n.dir() {
		x.Children = map[string]*DumpNode{}
	}
}

// dumpHistory writes the history ring with all its places: etcd writes to them without
// checking how many there are.
func dumpHistory(h *history, index uint64) *dumpHub {
	var out dumpHub
	q := &out.EventHistory.Queue
	q.Events = make([]*dumpEvent, historyEvents)
	q.Capacity, q.Size, q.Back = historyEvents, len(h.events), len(h.events)%historyEvents
	for i, e := range h.events {
		if e == nil { // etcd follows every pointer, so it must not be nil
			at := h.start + uint64(i)
			q.Events[i] = &dumpEvent{Action: Set, Node: &Node{Key: "/0", Dir: true, ModifiedIndex: at, CreatedIndex: at}}
			continue
		}
		q.Events[i] = &dumpEvent{e.Action, e.Node, e.PrevNode, e.Refresh}
	}
	out.EventHistory.StartIndex, out.EventHistory.LastIndex = h.start, index
	return &out
}

// ParseDump parses a dump of etcd, of any release, or of Quorate. It rejects a dump with
// more than a store may hold, so that few bytes cannot take much memory.
func ParseDump(data []byte) (*Dump, error) {
	const most = MaxNodes + 4*historyEvents + 100_000 // the second term is for a large membership
	if n := objects(data); n > most {
		return nil, fmt.Errorf("%w: more than %d nodes", ErrDump, most)
	}
	d := new(Dump)
	if err := json.Unmarshal(data, d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDump, err)
	}
	if d.Root == nil {
		return nil, fmt.Errorf("%w: no root", ErrDump)
	}
	return d, nil
}

// objects counts the objects in JSON text.
func objects(data []byte) (n int) {
	quoted := false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == '{' && !quoted:
			n++
		}
	}
	return n
}

// ClientKey returns the path of the first node that a client wrote, "" if there is none.
func (d *Dump) ClientKey() string {
	n := d.Root.Child("1")
	if n == nil || len(n.Children) == 0 {
		return ""
	}
	return path.Join("/1", slices.Sorted(maps.Keys(n.Children))[0])
}

// Restore writes to b the replacement of the store in an engine by the dump, except for the
// membership. The error is an ErrDump; the caller must then discard b.
func (d *Dump) Restore(b engine.Batch) error {
	if d.CurrentIndex > maxIndex {
		return fmt.Errorf("%w: index %d", ErrDump, d.CurrentIndex)
	}
	b.DeleteRange(engine.V2.Bounds())
	s := newStore(Options{})
	s.index = d.CurrentIndex
	if d.Stats != nil {
		from, to := d.Stats.writes(), s.stats.writes()
		for i := range to {
			*to[i] = *from[i]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.Root.Children)) {
		if name == "0" {
			continue
		}
		if err := s.restoreNode(b, "", name, d.Root.Children[name]); err != nil {
			return err
		}
	}
	s.written = s.nodes > 0
	for _, e := range d.events() {
		s.index = e.Node.ModifiedIndex
		if strings.HasPrefix(e.Node.Key+"/", "/0/") {
			s.remember(b, nil, 0)
			continue
		}
		s.written = true
		s.remember(b, &Event{Action: e.Action, Node: e.Node, PrevNode: e.PrevNode, Refresh: e.Refresh}, happened(e))
	}
	s.index = d.CurrentIndex
	s.putState(b)
	return nil
}

// restoreNode writes a node and everything below it.
func (s *Store) restoreNode(b engine.Batch, dir, name string, x *DumpNode) error {
	p := dir + "/" + name
	if x == nil || name == "" || clean(p) != p || strings.Contains(name, "/") {
		return fmt.Errorf("%w: a node %.200q", ErrDump, p)
	}
	if fits(p) != nil {
		return fmt.Errorf("%w: the path %.200q… is longer than %d bytes or %d elements, which this version does not keep", ErrDump, p, MaxPath, MaxDepth)
	}
	if x.CreatedIndex > s.index || x.ModifiedIndex > s.index {
		return fmt.Errorf("%w: node %.200q is newer than the store's index %d", ErrDump, p, s.index)
	}
	if !readOnly(p) {
		s.written = true
		n := &node{created: x.CreatedIndex, modified: x.ModifiedIndex, value: x.Value}
		if x.Children != nil {
			n.children, n.value = map[string]*node{}, ""
		}
		var err error
		if n.expire, err = unixNano(x.ExpireTime); err != nil {
			return fmt.Errorf("%w: node %.200q: %w", ErrDump, p, err)
		}
		s.nodes++
		s.bytes += size(p, n.value)
		if s.nodes > MaxNodes || s.bytes > MaxBytes {
			return fmt.Errorf("%w: more than %d nodes or %d bytes of paths and values, which this version does not keep", ErrDump, MaxNodes, MaxBytes)
		}
		b.Set(nodeKey(p), appendNode(nil, n))
	}
	for _, name := range slices.Sorted(maps.Keys(x.Children)) {
		if err := s.restoreNode(b, p, name, x.Children[name]); err != nil {
			return err
		}
	}
	return nil
}

// unixNano returns 0 for the zero time, which stands for never.
func unixNano(t time.Time) (int64, error) {
	if t.IsZero() {
		return 0, nil
	}
	if t.Year() < 1678 || t.Year() > 2261 {
		return 0, fmt.Errorf("expires in the year %d", t.Year())
	}
	return t.UnixNano(), nil
}

// events returns the usable part of the history: an unbroken run that ends at the store's
// index. It is the whole history unless the file was edited by hand.
func (d *Dump) events() []*dumpEvent {
	if d.WatcherHub == nil {
		return nil
	}
	q := &d.WatcherHub.EventHistory.Queue
	if q.Front < 0 || q.Front > len(q.Events) || q.Size < 0 || q.Size > len(q.Events) {
		return nil
	}
	ring := slices.Concat(q.Events[q.Front:], q.Events[:q.Front])[:q.Size]
	first := len(ring)
	for want := d.CurrentIndex; first > 0 && want > 0 && ring[first-1].usable(want); want-- {
		first--
	}
	return ring[max(first, len(ring)-historyEvents):]
}

// usable reports whether e can be the event of an index.
func (e *dumpEvent) usable(index uint64) bool {
	if e == nil || e.Node == nil || e.Node.ModifiedIndex != index || clean(e.Node.Key) != e.Node.Key {
		return false
	}
	for _, n := range []*Node{e.Node, e.PrevNode} {
		if n != nil && n.Expiration != nil {
			if ns, err := unixNano(*n.Expiration); err != nil || ns == 0 {
				return false
			}
		}
	}
	return slices.Index(actions, e.Action) > 0
}

// happened returns a time at which the TTLs of an event had the values in it, 0 if it has
// none.
func happened(e *dumpEvent) (at int64) {
	for _, n := range []*Node{e.Node, e.PrevNode} {
		if n == nil || n.Expiration == nil {
			continue
		}
		if t := n.Expiration.Add(-time.Duration(n.TTL) * time.Second).UnixNano(); at == 0 || t > at {
			at = t
		}
	}
	return at
}
