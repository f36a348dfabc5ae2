package mvcc

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/engine"
	"quorate/internal/ids"
)

// RangeResult is the answer to a range request.
type RangeResult struct {
	Revision ids.Revision // current revision of the state that was read
	Count    int64        // keys in the range, regardless of limit and filters
	More     bool         // the limit cut off some keys
	KVs      [][]byte     // encoded mvccpb.KeyValue each; immutable
}

// getLimit is the number of records up to which point reads are cheaper than opening
// an iterator.
const getLimit = 12

// reader reads one state: that of a view, or of the writer inside a transaction.
type reader struct {
	s          *Store
	root       kid
	rev        ids.Revision
	compactRev ids.Revision
	overlay    []pending // records that are not in the engine yet, ascending
	view       *View     // nil inside a transaction
}

// pick is a key that a range has selected.
type pick struct {
	meta
	key []byte
}

// makeSpan converts key and range_end of the API into bounds. end must not be empty (a
// single key).
func makeSpan(key, end []byte) span {
	if len(end) == 1 && end[0] == 0 {
		return span{lo: key}
	}
	return span{lo: key, hi: end}
}

// resolve validates a requested revision; 0 and below mean the current one.
func (r *reader) resolve(rev ids.Revision) (ids.Revision, error) {
	switch {
	case rev > r.rev:
		return 0, ErrFutureRev
	case rev <= 0:
		rev = r.rev
	}
	if rev < r.compactRev {
		return 0, ErrCompacted
	}
	return rev, nil
}

// at returns the root to use for rev: a pinned past root if there is one.
func (r *reader) at(rev ids.Revision) kid {
	if r.view == nil || rev == r.rev {
		return r.root
	}
	if st := r.s.pins.find(rev); st != nil && st.rev >= r.compactRev {
		return st.root
	}
	return r.root
}

func (r *reader) get(key []byte, rev ids.Revision) ([]byte, error) {
	n, i, ok := r.root.n.find(key)
	if !ok {
		return nil, nil
	}
	m, ok := n.at(i, rev)
	if !ok {
		return nil, nil
	}
	return r.record(m.rev())
}

func (r *reader) rangeKeys(req *pb.RangeRequest) (*RangeResult, error) {
	rev, err := r.resolve(ids.Revision(req.Revision))
	if err != nil {
		return nil, err
	}
	res := &RangeResult{Revision: r.rev}
	if len(req.RangeEnd) == 0 {
		return res, r.single(res, req, rev)
	}
	root, s := r.at(rev), makeSpan(req.Key, req.RangeEnd)
	if req.CountOnly {
		res.Count = root.count(s, rev)
		return res, nil
	}
	if custom(req) {
		return res, r.sorted(res, req, root, s, rev)
	}
	limit := int(max(req.Limit, 0))
	if req.KeysOnly {
		var room slab
		root.ascend(s, rev, func(n *node, i int, m meta) bool {
			if limit > 0 && len(res.KVs) == limit {
				res.More = true
				return false
			}
			res.KVs = append(res.KVs, keyOnly(&room, pick{m, n.key(i)}))
			return true
		})
	} else {
		var revs []Revision
		root.ascend(s, rev, func(_ *node, _ int, m meta) bool {
			if limit > 0 && len(revs) == limit {
				res.More = true
				return false
			}
			revs = append(revs, m.rev())
			return true
		})
		if res.KVs, err = r.records(revs); err != nil {
			return nil, err
		}
	}
	res.Count = int64(len(res.KVs))
	if res.More {
		res.Count = root.count(s, rev)
		r.pin(rev)
	}
	return res, nil
}

// pin retains the root of a list that will be continued with further pages.
func (r *reader) pin(rev ids.Revision) {
	if r.view != nil && rev == r.rev {
		r.s.pins.add(r.view.st)
	}
}

// single answers a request for one key.
func (r *reader) single(res *RangeResult, req *pb.RangeRequest, rev ids.Revision) error {
	n, i, ok := r.root.n.find(req.Key)
	if !ok {
		return nil
	}
	m, ok := n.at(i, rev)
	if !ok {
		return nil
	}
	res.Count = 1
	if req.CountOnly || filtered(req, m) {
		return nil
	}
	if keysFromIndex(req) {
		res.KVs = [][]byte{keyOnly(&slab{}, pick{m, n.key(i)})}
		return nil
	}
	kv, err := r.record(m.rev())
	if err != nil {
		return err
	}
	if req.KeysOnly {
		if kv, err = blankValue(kv); err != nil {
			return corrupt(AppendRevision(nil, m.rev(), false), err)
		}
	}
	res.KVs = [][]byte{kv}
	return nil
}

// keysFromIndex reports whether a keys_only request is answered without reading
// records: as in etcd 3.7, unless it sorts by value.
func keysFromIndex(req *pb.RangeRequest) bool {
	return req.KeysOnly && req.SortTarget != pb.RangeRequest_VALUE
}

// custom reports whether the result is filtered or not in ascending key order.
func custom(req *pb.RangeRequest) bool {
	return req.SortTarget != pb.RangeRequest_KEY || req.SortOrder == pb.RangeRequest_DESCEND || filters(req)
}

func filters(req *pb.RangeRequest) bool {
	return req.MinModRevision != 0 || req.MaxModRevision != 0 ||
		req.MinCreateRevision != 0 || req.MaxCreateRevision != 0
}

func filtered(req *pb.RangeRequest, m meta) bool {
	return req.MaxModRevision != 0 && m.mod > ids.Revision(req.MaxModRevision) ||
		req.MinModRevision != 0 && m.mod < ids.Revision(req.MinModRevision) ||
		req.MaxCreateRevision != 0 && m.create > ids.Revision(req.MaxCreateRevision) ||
		req.MinCreateRevision != 0 && m.create < ids.Revision(req.MinCreateRevision)
}

// sorted answers a request with a sort order or filters. Except for VALUE it sorts by
// data of the index, and reads only what the limit leaves.
func (r *reader) sorted(res *RangeResult, req *pb.RangeRequest, root kid, s span, rev ids.Revision) error {
	picks := r.picked(res, req, root, s, rev)
	if req.SortTarget == pb.RangeRequest_VALUE {
		return r.sortedByValue(res, req, picks)
	}
	if req.KeysOnly {
		var room slab
		for _, p := range picks {
			res.KVs = append(res.KVs, keyOnly(&room, p))
		}
		return nil
	}
	var err error
	res.KVs, err = r.records(revisions(picks))
	return err
}

// picked selects the keys of the answer and sorts them, except by value: then sorting
// and the limit follow later.
func (r *reader) picked(res *RangeResult, req *pb.RangeRequest, root kid, s span, rev ids.Revision) []pick {
	limit := int(max(req.Limit, 0))
	// Without an order etcd reads one key more than the limit, in key order, and sorts
	// only those. Clients can observe that, so it is the same here.
	few := 0
	if limit > 0 && req.SortTarget != pb.RangeRequest_KEY && req.SortOrder == pb.RangeRequest_NONE && !filters(req) {
		few = limit + 1
	}
	var picks []pick
	collect := func(n *node, i int, m meta) bool {
		if filtered(req, m) {
			return true
		}
		if few > 0 && len(picks) == few {
			return false
		}
		if limit > 0 && req.SortTarget == pb.RangeRequest_KEY && len(picks) == limit {
			res.More = true
			return false
		}
		picks = append(picks, pick{m, n.key(i)})
		return true
	}
	desc := req.SortOrder == pb.RangeRequest_DESCEND
	res.Count = root.count(s, rev)
	if desc && req.SortTarget == pb.RangeRequest_KEY {
		root.descendKeys(s, rev, collect)
	} else {
		root.ascend(s, rev, collect)
	}
	if req.SortTarget == pb.RangeRequest_VALUE {
		return picks
	}
	if by := order(req.SortTarget); by != nil {
		sortAs(picks, desc, by)
	}
	if limit > 0 && len(picks) > limit {
		picks, res.More = picks[:limit], true
	}
	return picks
}

func order(t pb.RangeRequest_SortTarget) func(a, b *pick) bool {
	switch t {
	case pb.RangeRequest_VERSION:
		return func(a, b *pick) bool { return a.version < b.version }
	case pb.RangeRequest_CREATE:
		return func(a, b *pick) bool { return a.create < b.create }
	case pb.RangeRequest_MOD:
		return func(a, b *pick) bool { return a.mod < b.mod }
	}
	return nil
}

// sortAs sorts a list in key order with etcd's algorithm, which determines the order of
// equal elements; a limit makes that visible.
func sortAs[T any](list []T, desc bool, less func(a, b *T) bool) {
	var by sort.Interface = &sorter[T]{list, less}
	if desc {
		by = sort.Reverse(by)
	}
	sort.Sort(by)
}

type sorter[T any] struct {
	list []T
	less func(a, b *T) bool
}

func (s *sorter[T]) Len() int           { return len(s.list) }
func (s *sorter[T]) Less(i, j int) bool { return s.less(&s.list[i], &s.list[j]) }
func (s *sorter[T]) Swap(i, j int)      { s.list[i], s.list[j] = s.list[j], s.list[i] }

func revisions(picks []pick) []Revision {
	revs := make([]Revision, len(picks))
	for i, p := range picks {
		revs[i] = p.rev()
	}
	return revs
}

func (r *reader) sortedByValue(res *RangeResult, req *pb.RangeRequest, picks []pick) error {
	kvs, err := r.records(revisions(picks))
	if err != nil {
		return err
	}
	type valued struct{ kv, value []byte }
	list := make([]valued, len(kvs))
	for i, kv := range kvs {
		rec, err := parseRecord(kv)
		if err != nil {
			return corrupt(AppendRevision(nil, picks[i].rev(), false), err)
		}
		list[i] = valued{kv, rec.value}
	}
	sortAs(list, req.SortOrder == pb.RangeRequest_DESCEND, func(a, b *valued) bool { return bytes.Compare(a.value, b.value) < 0 })
	if limit := int(max(req.Limit, 0)); limit > 0 && len(list) > limit {
		list, res.More = list[:limit], true
	}
	res.KVs = kvs[:len(list)]
	for i, e := range list {
		res.KVs[i] = e.kv
		if req.KeysOnly {
			if res.KVs[i], err = blankValue(e.kv); err != nil {
				return err
			}
		}
	}
	return nil
}

// keyOnly encodes what the index knows about a key; the lease is omitted, as in etcd
// 3.7.
func keyOnly(room *slab, p pick) []byte {
	r := record{key: p.key, create: p.create, mod: p.mod, version: p.version}
	return appendRecord(room.alloc(r.size()), r)
}

func blankValue(kv []byte) ([]byte, error) {
	rec, err := parseRecord(kv)
	if err != nil {
		return nil, err
	}
	rec.value = nil
	kv, _ = encodeRecord(rec)
	return kv, nil
}

// record reads the record of a revision that the index contains.
func (r *reader) record(rev Revision) ([]byte, error) {
	if kv, ok := r.overlaid(rev); ok {
		return kv, nil
	}
	var buf [1 + TombstoneLen]byte
	buf[0] = byte(engine.Key)
	kv, err := r.s.eng.Get(nil, AppendRevision(buf[:1], rev, false))
	if err != nil {
		return nil, missing(rev, err)
	}
	return kv, nil
}

// missing returns the error for a record that is in the index and cannot be read from
// the engine.
func missing(rev Revision, err error) error {
	if errors.Is(err, engine.ErrNotFound) {
		return corrupt(AppendRevision(nil, rev, false), err)
	}
	return fmt.Errorf("read record of revision %d.%d: %w", rev.Main, rev.Sub, err)
}

func (r *reader) overlaid(rev Revision) ([]byte, bool) {
	o := r.overlay
	if len(o) == 0 || rev.Less(o[0].rev) {
		return nil, false
	}
	i := sort.Search(len(o), func(i int) bool { return !o[i].rev.Less(rev) })
	if i == len(o) || o[i].rev != rev {
		return nil, false
	}
	return o[i].kv, true
}

// records reads many records; the result is in the order of revs. The engine stores
// records in revision order, so an iterator in that order reads each block once.
func (r *reader) records(revs []Revision) ([][]byte, error) {
	if len(revs) == 0 {
		return nil, nil
	}
	kvs := make([][]byte, len(revs))
	if len(revs) <= getLimit {
		for i, rev := range revs {
			kv, err := r.record(rev)
			if err != nil {
				return nil, err
			}
			kvs[i] = kv
		}
		return kvs, nil
	}
	return kvs, r.scan(revs, kvs)
}

// scan fills kvs with the records of revs.
func (r *reader) scan(revs []Revision, kvs [][]byte) error {
	idx := byRevision(revs)
	m := r.s.many(revs[idx[0]], revs[idx[len(idx)-1]], len(idx))
	defer m.close()
	var room slab
	for _, j := range idx {
		kv, ok := r.overlaid(revs[j])
		if !ok {
			v, err := m.read(revs[j])
			if err != nil {
				return err
			}
			kv = room.copy(v)
		}
		kvs[j] = kv
	}
	return nil
}

// byRevision returns the positions of revs in ascending order of revision.
func byRevision(revs []Revision) []int32 {
	idx := make([]int32, len(revs))
	for i := range idx {
		idx[i] = int32(i)
	}
	slices.SortFunc(idx, func(a, b int32) int {
		x, y := revs[a], revs[b]
		if c := cmp.Compare(x.Main, y.Main); c != 0 {
			return c
		}
		return cmp.Compare(x.Sub, y.Sub)
	})
	return idx
}

// slab allocates slices from larger blocks of memory.
type slab struct {
	free []byte
	size int // of the next block
}

// alloc returns an empty slice with capacity for n bytes.
func (s *slab) alloc(n int) []byte {
	if n > len(s.free) {
		if n > 8<<10 {
			return make([]byte, 0, n)
		}
		// The first blocks are small, as most results are.
		s.size = min(max(4*s.size, 512, n), 64<<10)
		s.free = make([]byte, s.size)
	}
	b := s.free[:0:n]
	s.free = s.free[n:]
	return b
}

func (s *slab) copy(b []byte) []byte { return append(s.alloc(len(b)), b...) }
