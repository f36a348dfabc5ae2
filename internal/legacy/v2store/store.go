// Package v2store is the tree of the v2 API, as replicated state.
//
// In: requests of the v2 API in log order and the changes of the membership, from one
// goroutine, each with the engine batch of its entry. Out: events, for the caller and for
// watchers, or the errors of the v2 API; reads of the tree, from any goroutine. Always
// true: the requests alone, with the times in them, decide about the tree, its index, its
// history of events and its counters of writes, so all members hold the same; all of it is
// recorded in the space engine.V2, in the batch of the request that changed it, so memory
// and records never disagree; a rejected request changes nothing but a counter.
//
// Keys of clients are below /1, users and roles below /2. The membership, which etcd stores
// below /0, is not part of this tree; its changes only take their indexes (Step). The index
// rises by one with each change, and the history holds the events of the latest indexes.
package v2store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/engine"
	"quorate/internal/metrics"
)

// Limits of the tree. They are checked at apply, so they are the same for all members.
const (
	// MaxBytes bounds the total size of the paths and values of all nodes.
	MaxBytes = 256 << 20
	// MaxNodes bounds the number of nodes.
	MaxNodes = 1_000_000
	// MaxPath bounds a path in bytes: it is a key of the engine, and of the database file
	// in which snapshots are sent, whose keys have at most 32 KiB.
	MaxPath = 32_000
	// MaxDepth bounds the elements of a path.
	MaxDepth = 1024
)

// maxIndex exceeds what any store reaches, and is far from where an index would overflow.
const maxIndex = 1 << 62

// Options are the dependencies of a store.
type Options struct {
	// Now is for the remaining TTL in answers, and decides nothing. It may be nil for a
	// store that is only inspected: one without calls of Get and Apply.
	Now func() time.Time
	// RefuseDirUpdate reports whether an update of a directory, which extends its life, is
	// rejected. etcd 3.5 rejects it, earlier releases do not. All members must return the
	// same at the same entry; nil: it is accepted.
	RefuseDirUpdate func() bool
}

// Store is the tree. Apply, Step and Close belong to one goroutine; the rest is safe for
// concurrent use.
type Store struct {
	opts Options

	mu      sync.RWMutex // guards all fields up to hub
	root    *node
	index   uint64
	written bool // by a client, ever
	loose   bool // the history up to index is not recorded
	history history
	stats   Stats // of writes
	due     queue
	nodes   int
	bytes   int64

	getsSuccess, getsFail atomic.Uint64
	hub                   hub
}

func newStore(o Options) *Store {
	s := &Store{opts: o, root: &node{children: map[string]*node{}}}
	for _, name := range []string{"0", "1"} {
		s.root.children[name] = &node{name: name, parent: s.root, children: map[string]*node{}}
	}
	s.hub.watchers = map[string]map[*Watcher]bool{}
	return s
}

// Load returns the store in r, an empty one if there is none. It returns an
// engine.CorruptionError for records that this package does not write.
func Load(r engine.Reader, o Options) (_ *Store, err error) {
	s := newStore(o)
	lower, upper := engine.V2.Bounds()
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return nil, fmt.Errorf("read bucket %v: %w", engine.V2, err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	now := int64(0)
	if o.Now != nil {
		now = o.Now().UnixNano()
	}
	// In the order of keys: events, state, nodes.
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			return nil, fmt.Errorf("read bucket %v: %w", engine.V2, err)
		}
		if err := s.load(it.Key()[1:], v, now); err != nil {
			return nil, &engine.CorruptionError{File: fmt.Sprintf("key %.200q of bucket %v", it.Key()[1:], engine.V2), Err: err}
		}
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("read bucket %v: %w", engine.V2, err)
	}
	if n := uint64(len(s.history.events)); n > 0 && s.history.start+n-1 != s.index {
		return nil, &engine.CorruptionError{File: fmt.Sprintf("bucket %v", engine.V2),
			Err: fmt.Errorf("events up to %d, but the index is %d", s.history.start+n-1, s.index)}
	}
	// Nodes with the same expiration are ordered by path, which is known only once all
	// nodes are linked.
	s.root.each(func(n *node) {
		if n.expire != 0 {
			s.due.Push(n)
		}
	})
	slices.SortFunc(s.due, byDue)
	for i, n := range s.due {
		n.due = i
	}
	return s, nil
}

// load loads one record.
func (s *Store) load(key, value []byte, now int64) error {
	if len(key) == 0 {
		return errors.New("an empty key")
	}
	switch rest := key[1:]; {
	case key[0] == 'h' && len(rest) == 8:
		return s.loadEvent(binary.BigEndian.Uint64(rest), value, now)
	case key[0] == 'i' && len(rest) == 0:
		return s.loadState(value)
	case key[0] == 'n':
		return s.loadNode(string(rest), value)
	}
	return errors.New("a key of no known form")
}

func (s *Store) loadEvent(index uint64, value []byte, now int64) error {
	e, err := decodeEvent(value, index, now)
	if err != nil {
		return err
	}
	if n := uint64(len(s.history.events)); index == 0 || n > 0 && index != s.history.start+n {
		return errors.New("the event before it is missing")
	}
	if len(s.history.events) >= historyEvents {
		return errors.New("too many events")
	}
	s.history.add(e, index)
	return nil
}

func (s *Store) loadState(value []byte) error {
	d := decoder{b: value}
	if v := d.byte(); d.err == nil && v != recordVersion {
		return fmt.Errorf("version %d, but this server knows only %d", v, recordVersion)
	}
	flags := d.byte()
	if flags&^stateWritten != 0 {
		return fmt.Errorf("flags %#x", flags)
	}
	s.written = flags&stateWritten != 0
	s.index = d.uint()
	for _, c := range s.stats.writes() {
		*c = d.uint()
	}
	if d.err != nil {
		return d.err
	}
	if len(d.b) > 0 {
		return fmt.Errorf("%d bytes too many", len(d.b))
	}
	if s.index > maxIndex {
		return fmt.Errorf("index %d", s.index)
	}
	return nil
}

func (s *Store) loadNode(p string, value []byte) error {
	n, err := decodeNode(value)
	if err != nil {
		return err
	}
	if clean(p) != p || readOnly(p) {
		return errors.New("no path of a node")
	}
	if e := fits(p); e != nil {
		return errors.New("the path is too long")
	}
	names := elements(p)
	at := s.root
	for _, name := range names[:len(names)-1] {
		if at = at.children[name]; at == nil || !at.dir() {
			return errors.New("the directory of the node is missing")
		}
	}
	if n.created > s.index || n.modified > s.index {
		return fmt.Errorf("the node is of index %d, but the index of the store is %d", max(n.created, n.modified), s.index)
	}
	n.name, n.parent = names[len(names)-1], at
	at.children[n.name] = n
	s.nodes++
	s.bytes += size(p, n.value)
	return nil
}

// putState writes the record that changes with every request.
func (s *Store) putState(b engine.Batch) {
	flags := byte(0)
	if s.written {
		flags = stateWritten
	}
	v := binary.AppendUvarint([]byte{recordVersion, flags}, s.index)
	for _, c := range s.stats.writes() {
		v = binary.AppendUvarint(v, *c)
	}
	b.Set(stateKey, v)
}

// Get returns a node and, for a directory, its children in the order of their keys; with
// recursive everything below it, too. Hidden nodes are left out. Errors are of type *Error.
func (s *Store) Get(p string, recursive, _ bool) (*Event, error) {
	action := Get
	if recursive {
		action = "getRecursive"
	}
	metrics.DebuggingStoreReadsTotal.WithLabelValues(action).Inc()
	p = clean(p)
	now := s.opts.Now().UnixNano()
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, e := s.find(p)
	if e != nil {
		s.getsFail.Add(1)
		return nil, e
	}
	s.getsSuccess.Add(1)
	out := &Event{Action: Get, Node: n.seen(p, now), EtcdIndex: s.index}
	if n.dir() {
		out.Node.Nodes = n.list(p, recursive, now)
	}
	return out, nil
}

// Index returns the index of the last change.
func (s *Store) Index() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index
}

// HasTTL reports whether some node will expire: only then the leader needs to propose a
// SYNC.
func (s *Store) HasTTL() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.due) > 0
}

// Step counts n changes of the membership, which etcd makes in this tree.
func (s *Store) Step(b engine.Batch, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loose {
		s.record(b)
	}
	for range n {
		s.index++
		s.remember(b, nil, 0)
	}
	s.putState(b)
}

// remember adds the event of the newest index to the history.
func (s *Store) remember(b engine.Batch, e *Event, at int64) {
	b.Set(eventKey(s.index), appendEvent(nil, e, at))
	from, to := s.history.add(e, s.index)
	for ; from < to; from++ {
		b.Delete(eventKey(from))
	}
}

// Close closes all watchers: when the member stops, and when another store replaces this
// one, because events in between would be missed. Later watchers are closed at once.
func (s *Store) Close() { s.hub.end() }
