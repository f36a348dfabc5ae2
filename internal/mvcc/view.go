package mvcc

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// View is a published state. It does not copy anything, but compactions delay the
// deletion of records until older views are closed. A View is not safe for concurrent
// use.
type View struct {
	s      *Store
	st     *state
	closed bool
	ranges int
}

// View returns the newest published state, that of the successor if the store has been replaced
// by one. It must be closed.
func (s *Store) View() *View {
	for {
		st := s.published.Load()
		if st.root.n == nil {
			s.mu.Lock()
			st = s.frozen()
			s.mu.Unlock()
		}
		if !st.read.Load() {
			st.read.Store(true)
		}
		if st.epoch.enter() {
			return &View{s: s, st: st}
		}
		if next := s.next.Load(); next != nil {
			return next.View()
		}
	}
}

// Rev returns the current revision of the view.
func (v *View) Rev() ids.Revision { return v.st.rev }

// CompactRev returns its compact revision, -1 if there was no compaction.
func (v *View) CompactRev() ids.Revision { return v.st.compactRev }

// Keys returns the number of live keys.
func (v *View) Keys() int64 { return v.st.root.count(span{}, v.st.rev) }

// Close releases the view. It is idempotent.
func (v *View) Close() {
	if v.closed {
		return
	}
	v.closed = true
	v.st.epoch.leave()
	if v.ranges > 0 {
		metrics.MVCCRangeTotal.Add(float64(v.ranges))
		if v.ranges > 1 {
			metrics.MVCCTxnTotal.Inc()
		}
	}
}

func (v *View) reader() reader {
	return reader{s: v.s, root: v.st.root, rev: v.st.rev, compactRev: v.st.compactRev, view: v}
}

// Range answers a request with etcd's semantics. The record slices of the result are
// immutable. Errors: ErrCompacted, ErrFutureRev, or those of the engine.
func (v *View) Range(req *pb.RangeRequest) (*RangeResult, error) {
	v.ranges++
	r := v.reader()
	return r.rangeKeys(req)
}

// Get returns the record of key at rev, 0 for the current revision; nil if the key was
// absent.
func (v *View) Get(key []byte, rev ids.Revision) ([]byte, error) {
	v.ranges++
	r := v.reader()
	rev, err := r.resolve(rev)
	if err != nil {
		return nil, err
	}
	return r.get(key, rev)
}

// Lookup returns what the index knows about key at the view's revision, without reading
// from the engine. The lease is not part of that: the index has only the newest one.
func (v *View) Lookup(key []byte) (Meta, bool) {
	n, i, ok := v.st.root.n.find(key)
	if !ok {
		return Meta{}, false
	}
	m, ok := n.at(i, v.st.rev)
	if !ok {
		return Meta{}, false
	}
	return Meta{Create: m.create, Mod: m.mod, Version: m.version}, true
}

// Records calls fn for every record from revision `from` up to the published revision,
// in order. kv is immutable and may be retained. It stops after maxRevs main revisions or
// maxBytes of records, whichever comes first, but never within a main revision; 0 means
// no bound. next is where to continue: the published revision + 1 if everything was
// seen. It returns ErrCompacted if from is below the compact revision (at the compact
// revision itself, the surviving records are seen).
func (s *Store) Records(from ids.Revision, maxRevs, maxBytes int, fn func(rev Revision, tombstone bool, kv []byte) error) (next ids.Revision, err error) {
	v := s.View()
	defer v.Close()
	s = v.s
	if from < v.st.compactRev {
		return from, ErrCompacted
	}
	end := v.st.rev + 1
	if from >= end {
		return from, nil
	}
	it, err := s.eng.NewIter(recordKey(Revision{Main: max(from, 0)}), recordKey(Revision{Main: end}))
	if err != nil {
		return from, fmt.Errorf("read history from revision %d: %w", from, err)
	}
	defer it.Close()
	main, revs, size := ids.Revision(-1), 0, 0
	for ok := it.First(); ok; ok = it.Next() {
		rev, tomb, err := ParseRevision(it.Key()[1:])
		if err != nil {
			return from, corrupt(it.Key()[1:], err)
		}
		if rev.Main != main {
			if maxRevs > 0 && revs >= maxRevs || maxBytes > 0 && size >= maxBytes && revs > 0 {
				return rev.Main, nil
			}
			main = rev.Main
			revs++
		}
		value, err := it.Value()
		if err != nil {
			return main, fmt.Errorf("read record of revision %d: %w", main, err)
		}
		size += len(value)
		if err := fn(rev, tomb, append(make([]byte, 0, len(value)), value...)); err != nil {
			return main, err
		}
	}
	if err := it.Error(); err != nil {
		return max(main, from), fmt.Errorf("read history from revision %d: %w", from, err)
	}
	return end, nil
}

// recordKey returns the engine key of a revision that is not a tombstone; it is also
// the lower bound of this and all later revisions.
func recordKey(r Revision) []byte {
	return AppendRevision([]byte{byte(engine.Key)}, r, false)
}
