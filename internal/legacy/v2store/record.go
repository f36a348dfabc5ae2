package v2store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"quorate/internal/engine"
)

// The records of the space engine.V2. Numbers are unsigned varints, times signed varints in
// Unix ns, texts a length and bytes.
//
//	"i"               state: version 1, flags (1 written), index, and the counters of stats.go
//	"n" path          node: flags (1 directory), created, modified, expiration; a file: its value
//	"h" index (8, BE) event: action (0: a step of the membership, and nothing follows), flags,
//	                  time of the event (0: not known), key, created; then as the flags say
//
// The root, /0 and /1 always exist and have no record.

const recordVersion = 1

// stateWritten is the flag of a tree that a client has written to.
const stateWritten = 1

var stateKey = engine.V2.K([]byte("i"))

func nodeKey(p string) []byte { return engine.V2.K(append([]byte{'n'}, p...)) }

// below returns the bounds of the records of everything below a path.
func below(p string) (lower, upper []byte) {
	return nodeKey(p + "/"), nodeKey(p + "0") // the byte after a slash
}

func eventKey(index uint64) []byte {
	return engine.V2.K(binary.BigEndian.AppendUint64([]byte{'h'}, index))
}

const (
	nodeDir = 1 << iota
)

func appendNode(b []byte, n *node) []byte {
	flags := byte(0)
	if n.dir() {
		flags |= nodeDir
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, n.created)
	b = binary.AppendUvarint(b, n.modified)
	b = binary.AppendVarint(b, n.expire)
	return append(b, n.value...)
}

func decodeNode(b []byte) (*node, error) {
	d := decoder{b: b}
	flags := d.byte()
	n := &node{created: d.uint(), modified: d.uint(), expire: d.int()}
	switch {
	case d.err != nil:
		return nil, d.err
	case flags&^nodeDir != 0:
		return nil, fmt.Errorf("flags %#x of a node", flags)
	case flags&nodeDir != 0 && len(d.b) > 0:
		return nil, errors.New("a directory with a value")
	case flags&nodeDir != 0:
		n.children = map[string]*node{}
	}
	n.value = string(d.b)
	return n, nil
}

// actions by their number in a record; "" is a change of the membership.
var actions = []string{"", Set, Create, Update, CompareAndSwap, Delete, CompareAndDelete, Expire}

// Flags of an event's record.
const (
	eventRefresh    = 1 << iota
	eventDir        // of node
	eventValue      // of node: follows
	eventExpires    // of node: follows
	eventPrev       // previous node: its indexes follow
	eventPrevDir    // of the previous node
	eventPrevValue  // follows
	eventPrevExpire // follows
	eventFlags      = 1<<iota - 1
)

// appendEvent encodes the event of an index that happened at a time.
func appendEvent(b []byte, e *Event, at int64) []byte {
	if e == nil {
		return append(b, 0)
	}
	flags := byte(0)
	set := func(bit int, on bool) {
		if on {
			flags |= byte(bit)
		}
	}
	set(eventRefresh, e.Refresh)
	set(eventDir, e.Node.Dir)
	set(eventValue, e.Node.Value != nil)
	set(eventExpires, e.Node.Expiration != nil)
	if p := e.PrevNode; p != nil {
		set(eventPrev, true)
		set(eventPrevDir, p.Dir)
		set(eventPrevValue, p.Value != nil)
		set(eventPrevExpire, p.Expiration != nil)
	}
	b = append(b, byte(slices.Index(actions, e.Action)), flags)
	b = binary.AppendVarint(b, at)
	b = appendText(b, e.Node.Key)
	b = appendSeen(b, e.Node)
	if e.PrevNode != nil {
		b = binary.AppendUvarint(b, e.PrevNode.ModifiedIndex)
		b = appendSeen(b, e.PrevNode)
	}
	return b
}

func appendSeen(b []byte, n *Node) []byte {
	b = binary.AppendUvarint(b, n.CreatedIndex)
	if n.Value != nil {
		b = appendText(b, *n.Value)
	}
	if n.Expiration != nil {
		b = binary.AppendVarint(b, n.Expiration.UnixNano())
	}
	return b
}

// decodeEvent is the inverse of appendEvent. For an event whose time is unknown, the
// remaining TTL is that of the current time.
func decodeEvent(b []byte, index uint64, now int64) (*Event, error) {
	d := decoder{b: b}
	action := int(d.byte())
	if d.err == nil && action == 0 && len(d.b) == 0 {
		return nil, nil
	}
	flags := int(d.byte())
	at := d.int()
	if at == 0 {
		at = now
	}
	key := d.text()
	e := &Event{EtcdIndex: index, Refresh: flags&eventRefresh != 0}
	e.Node = d.seen(key, flags&eventDir != 0, flags&eventValue != 0, flags&eventExpires != 0, at)
	e.Node.ModifiedIndex = index
	if flags&eventPrev != 0 {
		modified := d.uint()
		e.PrevNode = d.seen(key, flags&eventPrevDir != 0, flags&eventPrevValue != 0, flags&eventPrevExpire != 0, at)
		e.PrevNode.ModifiedIndex = modified
	}
	switch {
	case d.err != nil:
		return nil, d.err
	case len(d.b) > 0:
		return nil, fmt.Errorf("%d bytes too many", len(d.b))
	case action == 0 || action >= len(actions):
		return nil, fmt.Errorf("action %d", action)
	case flags&^eventFlags != 0 || flags&eventPrev == 0 && flags&(eventPrevDir|eventPrevValue|eventPrevExpire) != 0:
		return nil, fmt.Errorf("flags %#x of an event", flags)
	case clean(key) != key:
		return nil, fmt.Errorf("key %.200q", key)
	}
	e.Action = actions[action]
	return e, nil
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder decodes a record. After the first failure it returns zeros.
type decoder struct {
	b   []byte
	err error
}

var errCut = errors.New("the record is cut off")

func (d *decoder) fail() {
	d.b, d.err = nil, errCut
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail()
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) seen(key string, dir, value, expires bool, at int64) *Node {
	n := &Node{Key: key, Dir: dir, CreatedIndex: d.uint()}
	if value {
		v := d.text()
		n.Value = &v
	}
	if expires {
		n.times(d.int(), at)
	}
	return n
}
