package mvcc

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/descriptors"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/metrics"
)

// Change is one effect of a transaction. Its slices are immutable and may be retained;
// Key aliases KV.
type Change struct {
	Rev       Revision
	Key       []byte
	KV        []byte // encoded mvccpb.KeyValue as stored; a tombstone's holds only the key
	Delete    bool
	Create    bool     // a put of a key that was not live
	Lease     lease.ID // lease of the key after the change
	PrevLease lease.ID // lease of the key before it, 0 if it was not live
}

// Meta is what the index knows about a live key.
type Meta struct {
	Create, Mod ids.Revision
	Version     int64
	Lease       lease.ID
}

// Txn is one transaction of the writer: all its changes have one main revision. It must
// be ended before the next Begin.
type Txn struct {
	s     *Store
	b     engine.Batch
	begin ids.Revision // revision before the transaction
	// changes is the part of the store's slab that this transaction has filled.
	changes []Change
	key     [1 + TombstoneLen]byte
	// saved is the index at Savepoint, and overlaid the number of records in the overlay.
	saved    *kid
	overlaid int

	// Counts of calls for the metrics, and bytes put.
	ranges, puts, deletes, size int
}

// Begin opens a transaction that writes its records into b. The caller commits b and
// then calls Publish; several transactions may share a batch.
func (s *Store) Begin(b engine.Batch) *Txn {
	s.mu.Lock()
	t := &s.txn
	t.s, t.b, t.begin, t.saved = s, b, s.rev, nil
	t.ranges, t.puts, t.deletes, t.size = 0, 0, 0, 0
	if len(s.slab) == cap(s.slab) {
		s.slab = make([]Change, 0, 32)
	}
	n := len(s.slab)
	t.changes = s.slab[n:n]
	return t
}

// Rev returns the revision at which the transaction reads: the previous one, and its
// own once it has changed something.
func (t *Txn) Rev() ids.Revision {
	if len(t.changes) > 0 {
		return t.begin + 1
	}
	return t.begin
}

// Lookup returns what the index knows about key inside the transaction.
func (t *Txn) Lookup(key []byte) (Meta, bool) {
	n, i, ok := t.s.tree.root.n.find(key)
	if !ok || n.ents[i].tomb() {
		return Meta{}, false
	}
	m := n.ents[i]
	return Meta{Create: m.create, Mod: m.mod, Version: m.version, Lease: n.lease(i)}, true
}

// Put sets key to value.
func (t *Txn) Put(key, value []byte, lease lease.ID) Change {
	rev := Revision{t.begin + 1, int64(len(t.changes))}
	ch := t.s.tree.put(key, rev.Main, uint32(rev.Sub), lease, len(value))
	kv, k := encodeRecord(record{key: key, value: value, create: ch.cur.create,
		mod: rev.Main, version: ch.cur.version, lease: lease})
	t.puts++
	t.size += len(key) + len(value)
	return t.record(Change{Rev: rev, Key: k, KV: kv, Create: !ch.had, Lease: lease, PrevLease: ch.prevLease})
}

// DeleteRange deletes the keys of [key, end): only key itself if end is empty, every
// key from key on if end is a zero byte. It returns one change per key that was live,
// in key order.
func (t *Txn) DeleteRange(key, end []byte) []Change {
	t.deletes++
	from := len(t.changes)
	if len(end) == 0 {
		t.del(key)
		return t.changes[from:len(t.changes):len(t.changes)]
	}
	t.s.frozen() // this may take long
	var keys [][]byte
	t.s.tree.root.ascend(makeSpan(key, end), never, func(n *node, i int, _ meta) bool {
		keys = append(keys, n.key(i))
		return true
	})
	for _, k := range keys {
		t.del(k)
	}
	return t.changes[from:len(t.changes):len(t.changes)]
}

func (t *Txn) del(key []byte) {
	rev := Revision{t.begin + 1, int64(len(t.changes))}
	ch, ok := t.s.tree.del(key, rev.Main, uint32(rev.Sub))
	if !ok {
		return
	}
	kv, k := encodeRecord(record{key: key})
	t.record(Change{Rev: rev, Key: k, KV: kv, Delete: true, PrevLease: ch.prevLease})
}

// Savepoint lets Rollback undo what the transaction does from here on. It must be called
// before the first change. It costs a copy of each index node that is changed.
func (t *Txn) Savepoint() {
	t.s.frozen() // no reader may take a root that Rollback undoes
	root := t.s.tree.root
	t.saved, t.overlaid = &root, len(t.s.overlay)
	t.s.tree.gen++ // nodes of the saved root are then copied before a change
}

// Rollback undoes everything since Savepoint, as if the transaction had only read.
func (t *Txn) Rollback() {
	s := t.s
	s.tree.root, t.saved = *t.saved, nil
	clear(s.overlay[t.overlaid:])
	s.overlay = s.overlay[:t.overlaid]
	clear(t.changes)
	t.changes = t.changes[:0]
	t.puts, t.deletes, t.size = 0, 0, 0
}

// record adds the change to the overlay and the result; End writes it to the batch.
func (t *Txn) record(c Change) Change {
	t.s.overlay = append(t.s.overlay, pending{c.Rev, c.KV})
	t.changes = append(t.changes, c)
	return c
}

// Range reads inside the transaction: it sees the writes of this and earlier
// transactions, published or not.
func (t *Txn) Range(req *pb.RangeRequest) (*RangeResult, error) {
	t.ranges++
	if len(req.RangeEnd) > 0 {
		t.s.frozen() // this may take long
	}
	r := reader{s: t.s, root: t.s.tree.root, rev: t.Rev(), compactRev: t.s.compactRev, overlay: t.s.overlay}
	return untilDescriptors(func() (*RangeResult, error) { return r.rangeKeys(req) })
}

// untilDescriptors repeats a read that fails for lack of file descriptors. Elsewhere such a
// read fails, but a transaction must be executed, as it is by the other members. The engine
// waits before each failure.
func untilDescriptors[T any](read func() (T, error)) (T, error) {
	for {
		v, err := read()
		if !descriptors.Exhausted(err) {
			return v, err
		}
	}
}

// Get reads key inside the transaction; the record is nil if the key is absent.
func (t *Txn) Get(key []byte) ([]byte, error) {
	t.ranges++
	r := reader{s: t.s, root: t.s.tree.root, rev: t.Rev(), compactRev: t.s.compactRev, overlay: t.s.overlay}
	return untilDescriptors(func() ([]byte, error) { return r.get(key, t.Rev()) })
}

// End closes the transaction: the revision is incremented if something changed. The
// changes are in order of execution.
func (t *Txn) End() []Change {
	s := t.s
	changes := t.changes
	for i := range changes {
		c := &changes[i]
		t.b.Set(AppendRevision(append(t.key[:0], byte(engine.Key)), c.Rev, c.Delete), c.KV)
	}
	if n := len(changes); n > 0 {
		s.rev = t.begin + 1
		s.dirty = true
		if len(s.slab)+n <= cap(s.slab) {
			s.slab = s.slab[:len(s.slab)+n]
		} else {
			s.slab = nil // results of DeleteRange may point into it
		}
	}
	changes = changes[:len(changes):len(changes)]
	ranges, puts, deletes, size := t.ranges, t.puts, t.deletes, t.size
	t.b, t.changes, t.saved = nil, nil, nil
	s.mu.Unlock()
	observe(ranges, puts, deletes, size)
	return changes
}

func observe(ranges, puts, deletes, size int) {
	if puts > 0 {
		metrics.MVCCPutTotal.Add(float64(puts))
		metrics.DebuggingMVCCTotalPutSizeInBytes.Add(float64(size))
	}
	if deletes > 0 {
		metrics.MVCCDeleteTotal.Add(float64(deletes))
	}
	if ranges > 0 {
		metrics.MVCCRangeTotal.Add(float64(ranges))
	}
	if ranges+puts+deletes > 1 {
		metrics.MVCCTxnTotal.Inc()
	}
}
