// Package mvcc stores every key with its revisions in an engine.
//
// In: puts and deletes of one writer, in transactions of one revision each, and
// compactions. Out: reads at any revision that is not compacted, history in revision
// order, and the hash that members compare. Always true: records are byte for byte
// etcd's (an encoded mvccpb.KeyValue under its revision); a record that a View may read
// is in the engine; an index root that a reader has never changes; the cost of a compaction is
// proportional to what it removes, not to what is stored.
//
// The engine holds records in revision order, the index (tree.go) holds keys in key
// order. A write goes to both: the record into the caller's batch, the entry into the
// writer's tree. It becomes visible to readers with Publish, after the caller has
// committed the batch. The index is never stored: Open rebuilds it from the records.
package mvcc

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/metrics"
)

// Errors of reads and compactions, with etcd's texts.
var (
	ErrCompacted = errors.New("mvcc: required revision has been compacted")
	ErrFutureRev = errors.New("mvcc: required revision is a future revision")
)

// Options tune a Store; the zero value is suitable for production.
type Options struct {
	// Logger receives messages about compactions and their failures; nil: no logging.
	Logger *zap.Logger
	// Clock paces background work and times it for metrics; nil is the real one.
	Clock clock.Clock
	// CompactionBatch is the number of records that background work processes in one
	// step, 0 means 700. CompactionPause is the time between two steps, 0 means 1 ms.
	CompactionBatch int
	CompactionPause time.Duration
	// Manual starts no goroutine: the owner calls Step until it returns false.
	Manual bool
	// HashKeys is the greatest number of live keys up to which a compaction completes
	// its hash at once, 0 means 100000. Above that the hash is completed when HashKV
	// first requests it, which must be before the next compaction.
	HashKeys int
	// PinBytes bounds the memory of past index roots that are retained for the pages of
	// a list at one revision, 0 means 32 MiB. At the bound the oldest is dropped, and
	// its pages cost O(keys changed since) instead of O(page).
	PinBytes int64
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = clock.Real{}
	}
	if o.CompactionBatch <= 0 {
		o.CompactionBatch = 700
	}
	if o.CompactionPause <= 0 {
		o.CompactionPause = time.Millisecond
	}
	if o.HashKeys <= 0 {
		o.HashKeys = 100_000
	}
	if o.PinBytes <= 0 {
		o.PinBytes = 32 << 20
	}
	return o
}

// Keys of the meta bucket.
var (
	scheduledKey = engine.Meta.K([]byte("scheduledCompactRev"))
	finishedKey  = engine.Meta.K([]byte("finishedCompactRev"))
)

// Store holds the revisions of one member. Begin, Compact and Publish must be called
// from one goroutine, the writer; everything else is safe for concurrent use.
type Store struct {
	eng engine.Engine
	o   Options

	published atomic.Pointer[state]
	next      atomic.Pointer[Store] // set by Retire

	// mu lets the background steps of a compaction trim the index between two
	// transactions, and the first reader of a state take its root. It is held from Begin
	// to End and in Publish and Compact, never while waiting for anything else.
	mu         sync.Mutex
	tree       *tree
	rev        ids.Revision // newest revision, including what is not published
	compactRev ids.Revision // -1 if never compacted
	dirty      bool         // there are changes to publish
	overlay    []pending
	scheduled  []*compaction // not published yet
	ended      []*epoch      // that had open views when they were last looked at
	txn        Txn           // the open transaction; reused
	slab       []Change      // storage for the changes of future transactions

	large largeMemory // of lists that read in large pieces

	pins  pins
	sums  checksums
	sweep sweeper
}

// state is what readers see; immutable, except for read. A state that nobody has read
// since it was published may have no root: see frozen.
type state struct {
	root       kid // may contain newer revisions than rev, which readers skip
	gen        uint64
	rev        ids.Revision
	compactRev ids.Revision
	epoch      *epoch
	read       atomic.Bool // there was a view
}

// epoch counts the open views between two compactions. The second compaction must not
// delete records before the views of the first epoch are closed.
type epoch struct {
	refs    atomic.Int64
	over    atomic.Bool
	drained chan struct{}
	once    sync.Once
}

func newEpoch() *epoch { return &epoch{drained: make(chan struct{})} }

// enter acquires a reference, unless the epoch has ended.
func (e *epoch) enter() bool {
	e.refs.Add(1)
	if e.over.Load() {
		e.leave()
		return false
	}
	return true
}

func (e *epoch) leave() {
	if e.refs.Add(-1) == 0 && e.over.Load() {
		e.once.Do(func() { close(e.drained) })
	}
}

// end admits no further views; drained is closed when all have left.
func (e *epoch) end() {
	e.over.Store(true)
	if e.refs.Load() == 0 {
		e.once.Do(func() { close(e.drained) })
	}
}

func (e *epoch) isDrained() bool {
	select {
	case <-e.drained:
		return true
	default:
		return false
	}
}

// pending is a record that is in the index and in a batch, but not yet readable from
// the engine.
type pending struct {
	rev Revision
	kv  []byte
}

// Rev returns the writer's current revision, including what is not published yet. An
// empty store is at revision 1. Only the writer may call it; readers use their View.
func (s *Store) Rev() ids.Revision { return s.rev }

// CompactRev returns the compact revision that readers see, -1 if there was no
// compaction yet.
func (s *Store) CompactRev() ids.Revision { return s.published.Load().compactRev }

// Publish makes everything up to the last End and Compact visible to new views. The
// batches must have been committed.
func (s *Store) Publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return
	}
	s.publish(s.rev, s.compactRev)
	s.dirty = false
	clear(s.overlay)
	s.overlay = s.overlay[:0]
	if cap(s.overlay) > 4096 {
		s.overlay = nil
	}
	for _, c := range s.scheduled {
		s.sweep.add(s, c)
	}
	clear(s.scheduled)
	s.scheduled = s.scheduled[:0]
	s.observeState()
}

// observeState exports what Open or Publish has just published.
func (s *Store) observeState() {
	metrics.DebuggingMVCCCurrentRevision.Set(float64(s.rev))
	metrics.DebuggingMVCCCompactRevision.Set(float64(s.compactRev))
	metrics.DebuggingMVCCKeysTotal.Set(float64(s.tree.root.live))
}

// publish makes the tree the root for new readers: at once if the previous state was read,
// otherwise when the first reader comes.
func (s *Store) publish(rev, compactRev ids.Revision) {
	old := s.published.Load()
	st := &state{rev: rev, compactRev: compactRev}
	if old == nil || old.read.Load() {
		s.root(st)
	}
	if old != nil {
		st.epoch = old.epoch
	}
	if len(s.scheduled) > 0 || old == nil {
		st.epoch = newEpoch()
	}
	s.published.Store(st)
	if old != nil && old.epoch != st.epoch {
		old.epoch.end()
		s.ended = append(slices.DeleteFunc(s.ended, (*epoch).isDrained), old.epoch)
		for _, c := range s.scheduled {
			c.wait = append(c.wait, old.epoch)
		}
	}
	s.tree.kept = s.pins.charge(s.tree.kept, compactRev, s.o.PinBytes)
	s.tree.pinGen = s.pins.newestGen()
}

// root gives a state the tree as its root. From now on the writer copies the nodes of that
// root before it changes them.
func (s *Store) root(st *state) {
	st.root, st.gen = s.tree.root, s.tree.gen
	s.tree.gen++
}

// frozen returns the newest published state with a root. s.mu must be held.
//
// While nobody reads, no root is taken, and the writer changes its nodes in place: with one
// root for each batch, a small batch copies a path of the tree for each key. The first
// reader takes the root of the newest state, between two transactions. The tree may then
// hold revisions of a batch that is not published, which are newer than that of the state.
func (s *Store) frozen() *state {
	st := s.published.Load()
	if st.root.n != nil {
		return st
	}
	with := &state{rev: st.rev, compactRev: st.compactRev, epoch: st.epoch}
	s.root(with)
	s.published.Store(with)
	return with
}

// Close stops the background work and returns when it has stopped. Records that a
// compaction has not deleted yet are deleted after the next Open. Views may still be
// closed afterwards, but not read.
func (s *Store) Close() { s.sweep.stop() }

// Leases calls fn for every live key with a lease, in key order.
func (s *Store) Leases(fn func(key []byte, lease lease.ID)) {
	v := s.View()
	defer v.Close()
	v.st.root.ascend(span{}, v.st.rev, func(n *node, i int, _ meta) bool {
		if l := n.lease(i); l != 0 {
			fn(n.key(i), l)
		}
		return true
	})
}

// corrupt returns the error for a record that no member can have written.
func corrupt(bucketKey []byte, err error) error {
	return &engine.CorruptionError{File: fmt.Sprintf("record %x of bucket key", bucketKey), Err: err}
}
