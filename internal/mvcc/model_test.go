package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand"
	"reflect"
	"sort"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/lease"
)

// model is the simplest store that follows the rules: a list of records.
type model struct {
	recs    []modelRec // in revision order; compacted ones stay, marked
	rev     ids.Revision
	compact ids.Revision
	sums    map[ids.Revision]HashResult
}

type modelRec struct {
	rev  Revision
	tomb bool
	gone bool // removed by a compaction
	kv   *mvccpb.KeyValue
}

func newModel() *model { return &model{rev: 1, compact: -1, sums: map[ids.Revision]HashResult{}} }

func (m *model) clone() *model {
	c := *m
	c.recs = append([]modelRec(nil), m.recs...)
	c.sums = map[ids.Revision]HashResult{} // a restart loses them
	return &c
}

// live returns the keys at rev.
func (m *model) live(rev ids.Revision) map[string]*mvccpb.KeyValue {
	out := map[string]*mvccpb.KeyValue{}
	for _, r := range m.recs {
		if r.rev.Main > rev {
			break
		}
		if r.tomb {
			delete(out, string(r.kv.Key))
		} else {
			out[string(r.kv.Key)] = r.kv
		}
	}
	return out
}

func (m *model) put(main ids.Revision, sub int, key, value []byte, lease int64) {
	kv := &mvccpb.KeyValue{Key: key, Value: value, Lease: lease, ModRevision: int64(main), CreateRevision: int64(main), Version: 1}
	if old := m.live(main)[string(key)]; old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	m.recs = append(m.recs, modelRec{rev: Revision{main, int64(sub)}, kv: kv})
}

func inRange(key, lo, hi []byte) bool {
	if len(hi) == 0 {
		return bytes.Equal(key, lo)
	}
	return bytes.Compare(key, lo) >= 0 && (bytes.Equal(hi, []byte{0}) || bytes.Compare(key, hi) < 0)
}

func (m *model) sorted(rev ids.Revision, lo, hi []byte) []*mvccpb.KeyValue {
	var out []*mvccpb.KeyValue
	for _, kv := range m.live(rev) {
		if inRange(kv.Key, lo, hi) {
			out = append(out, kv)
		}
	}
	sort.Slice(out, func(i, j int) bool { return bytes.Compare(out[i].Key, out[j].Key) < 0 })
	return out
}

func (m *model) delete(main ids.Revision, sub int, lo, hi []byte) (n int) {
	for _, kv := range m.sorted(main, lo, hi) {
		m.recs = append(m.recs, modelRec{rev: Revision{main, int64(sub + n)}, tomb: true, kv: &mvccpb.KeyValue{Key: kv.Key}})
		n++
	}
	return n
}

// keep is the set that stays readable at rev; with tombs it includes the tombstones of
// exactly rev.
func (m *model) keep(rev ids.Revision, tombs bool) map[Revision]bool {
	out := map[Revision]bool{}
	newest := map[string]modelRec{}
	for _, r := range m.recs {
		if r.rev.Main <= rev {
			newest[string(r.kv.Key)] = r
		}
	}
	for _, r := range newest {
		if !r.tomb || tombs && r.rev.Main == rev {
			out[r.rev] = true
		}
	}
	return out
}

func (m *model) hash(rev ids.Revision, compact ids.Revision, keep map[Revision]bool) HashResult {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	h.Write([]byte("key"))
	for _, r := range m.recs {
		switch {
		case r.gone, r.rev.Main > rev:
		case r.rev.Main <= compact && len(keep) > 0 && !keep[r.rev]:
		case r.tomb && r.rev.Main == compact:
		default:
			h.Write(AppendRevision(nil, r.rev, r.tomb))
			b, err := proto.Marshal(r.kv)
			if err != nil {
				panic(err)
			}
			h.Write(b)
		}
	}
	return HashResult{Hash: h.Sum32(), CompactRev: compact, HashRev: rev, CurrentRev: m.rev}
}

func (m *model) compactAt(rev ids.Revision) {
	keep := m.keep(rev, true)
	m.sums[rev] = m.hash(rev, m.compact, keep)
	for i, r := range m.recs {
		if r.rev.Main <= rev && !keep[r.rev] {
			m.recs[i].gone = true
		}
	}
	m.compact = rev
}

func (m *model) hashKV(rev ids.Revision) (HashResult, error) {
	if sum, ok := m.sums[rev]; ok {
		sum.CurrentRev = m.rev
		return sum, nil
	}
	switch {
	case rev > 0 && rev < m.compact:
		return HashResult{}, ErrCompacted
	case rev > m.rev:
		return HashResult{CurrentRev: m.rev}, ErrFutureRev
	case rev <= 0:
		rev = m.rev
	}
	return m.hash(rev, m.compact, m.keep(rev, false)), nil
}

type modelResult struct {
	count int64
	more  bool
	kvs   []*mvccpb.KeyValue
}

func (m *model) rangeKeys(req *pb.RangeRequest) (modelResult, error) {
	rev := ids.Revision(req.Revision)
	if rev > m.rev {
		return modelResult{}, ErrFutureRev
	}
	if rev <= 0 {
		rev = m.rev
	}
	if rev < m.compact {
		return modelResult{}, ErrCompacted
	}
	all := m.sorted(rev, req.Key, req.RangeEnd)
	res := modelResult{count: int64(len(all))}
	if req.CountOnly {
		return res, nil
	}
	for _, kv := range all {
		if req.MaxModRevision != 0 && kv.ModRevision > req.MaxModRevision || kv.ModRevision < req.MinModRevision ||
			req.MaxCreateRevision != 0 && kv.CreateRevision > req.MaxCreateRevision || kv.CreateRevision < req.MinCreateRevision {
			continue
		}
		kv = proto.Clone(kv).(*mvccpb.KeyValue)
		if req.KeysOnly && req.SortTarget != pb.RangeRequest_VALUE {
			kv.Value, kv.Lease = nil, 0
		}
		res.kvs = append(res.kvs, kv)
	}
	if n := int(req.Limit) + 1; n > 1 && len(res.kvs) > n && req.SortOrder == pb.RangeRequest_NONE &&
		req.MinModRevision|req.MaxModRevision|req.MinCreateRevision|req.MaxCreateRevision == 0 {
		res.kvs = res.kvs[:n] // etcd sorts no more than that without an order
	}
	less := map[pb.RangeRequest_SortTarget]func(a, b *mvccpb.KeyValue) bool{
		pb.RangeRequest_KEY:     func(a, b *mvccpb.KeyValue) bool { return bytes.Compare(a.Key, b.Key) < 0 },
		pb.RangeRequest_VALUE:   func(a, b *mvccpb.KeyValue) bool { return bytes.Compare(a.Value, b.Value) < 0 },
		pb.RangeRequest_MOD:     func(a, b *mvccpb.KeyValue) bool { return a.ModRevision < b.ModRevision },
		pb.RangeRequest_CREATE:  func(a, b *mvccpb.KeyValue) bool { return a.CreateRevision < b.CreateRevision },
		pb.RangeRequest_VERSION: func(a, b *mvccpb.KeyValue) bool { return a.Version < b.Version },
	}[req.SortTarget]
	sort.Slice(res.kvs, func(i, j int) bool { // etcd's sort is not stable either, and clients see it
		if req.SortOrder == pb.RangeRequest_DESCEND {
			i, j = j, i
		}
		return less(res.kvs[i], res.kvs[j])
	})
	if n := int(req.Limit); n > 0 && len(res.kvs) > n {
		res.kvs, res.more = res.kvs[:n], true
	}
	if req.KeysOnly {
		for _, kv := range res.kvs {
			kv.Value = nil
		}
	}
	return res, nil
}

// world drives one store and its model with the same operations.
type world struct {
	t    *testing.T
	rnd  *rand.Rand
	eng  engine.Engine
	s    *Store
	m    *model
	kept *model // the model as of the last Flush
	// crash closes the engine and returns what survives a power loss.
	crash func() engine.Engine
	opts  Options
	keys  int
	// views opened at some time, with the model of that time.
	views []heldView
}

type heldView struct {
	v *View
	m *model
}

func (w *world) key() []byte { return []byte(fmt.Sprintf("k%03d", w.rnd.Intn(w.keys))) }

func (w *world) bounds() (lo, hi []byte) {
	switch lo = w.key(); w.rnd.Intn(4) {
	case 0:
		return lo, nil
	case 1:
		return lo, []byte{0}
	case 2:
		return []byte{0}, []byte{0}
	default:
		return lo, w.key()
	}
}

func (w *world) request() *pb.RangeRequest {
	req := &pb.RangeRequest{}
	req.Key, req.RangeEnd = w.bounds()
	r := w.rnd
	if r.Intn(2) == 0 {
		req.Revision = int64(max(0, w.m.rev-ids.Revision(r.Intn(40))+2))
	}
	if r.Intn(2) == 0 {
		req.Limit = int64(r.Intn(w.keys))
	}
	req.CountOnly = r.Intn(8) == 0
	req.KeysOnly = r.Intn(4) == 0
	if r.Intn(3) == 0 {
		req.SortOrder = pb.RangeRequest_SortOrder(r.Intn(3))
		req.SortTarget = pb.RangeRequest_SortTarget(r.Intn(5))
	}
	if r.Intn(5) == 0 {
		req.MinModRevision = int64(r.Intn(int(w.m.rev)))
		req.MaxCreateRevision = int64(r.Intn(int(w.m.rev)))
	}
	if r.Intn(5) == 0 {
		req.MaxModRevision = int64(r.Intn(int(w.m.rev)))
		req.MinCreateRevision = int64(r.Intn(int(w.m.rev)))
	}
	return req
}

func (w *world) compare(where string, m *model, req *pb.RangeRequest, got *RangeResult, err error) {
	w.t.Helper()
	want, wantErr := m.rangeKeys(req)
	if !errors.Is(err, wantErr) {
		w.t.Fatalf("%s %v: error %v, want %v", where, req, err, wantErr)
	}
	if err != nil {
		return
	}
	if got.Revision != m.rev || got.Count != want.count || got.More != want.more || len(got.KVs) != len(want.kvs) {
		w.t.Fatalf("%s %v: rev %d count %d more %v, %d kvs; want rev %d count %d more %v, %d kvs", where, req,
			got.Revision, got.Count, got.More, len(got.KVs), m.rev, want.count, want.more, len(want.kvs))
	}
	for i, kv := range got.KVs {
		b, err := proto.Marshal(want.kvs[i])
		if err != nil {
			w.t.Fatal(err)
		}
		if !bytes.Equal(kv, b) {
			w.t.Fatalf("%s %v: kv %d is %x, want %x", where, req, i, kv, b)
		}
	}
}

func (w *world) compareList(where string, req *pb.RangeRequest, l *List, err error) {
	w.t.Helper()
	if err != nil {
		w.compare(where, w.m, req, nil, err)
		return
	}
	res := collect(w.t, l)
	w.compare(where, w.m, req, res, nil)
}

// collect reads a list to its end and checks what the list reports about itself.
func collect(t testing.TB, l *List) *RangeResult {
	t.Helper()
	defer l.Close()
	res := &RangeResult{Revision: l.Revision, Count: l.Count, More: l.More}
	size := int64(0)
	for last := false; !last; {
		var b []byte
		var err error
		if b, last, err = l.Next(); err != nil {
			t.Fatal(err)
		}
		size += int64(len(b))
		for len(b) > 0 {
			if b[0] != tagKVs {
				t.Fatalf("an element begins with %x", b[0])
			}
			n, w := binary.Uvarint(b[1:])
			res.KVs = append(res.KVs, bytes.Clone(b[1+w:1+w+int(n)]))
			b = b[1+w+int(n):]
		}
	}
	if size != l.Bytes || int64(len(res.KVs)) != l.Keys {
		t.Fatalf("%d bytes of %d records; %d and %d were announced", size, len(res.KVs), l.Bytes, l.Keys)
	}
	return res
}

// txns runs one batch of transactions, with reads inside.
func (w *world) txns() {
	b := w.eng.NewBatch()
	var before *model // for a view that is opened in the middle of the batch
	if w.rnd.Intn(4) == 0 {
		before = w.m.clone()
	}
	for range 1 + w.rnd.Intn(3) {
		main, sub := w.m.rev+1, 0
		t := w.s.Begin(b)
		touched := map[string]bool{} // a key changes once per transaction
		for range 1 + w.rnd.Intn(3) {
			if w.rnd.Intn(4) > 0 {
				k := w.key()
				if touched[string(k)] {
					continue
				}
				touched[string(k)] = true
				v := bytes.Repeat([]byte{byte('a' + w.rnd.Intn(26))}, w.rnd.Intn(200))
				t.Put(k, v, lease.ID(w.rnd.Intn(3)))
				w.m.put(main, sub, k, v, w.m0lease(t))
				sub++
			} else {
				lo, hi := w.bounds()
				conflict := false
				for k := range touched {
					conflict = conflict || inRange([]byte(k), lo, hi)
				}
				if conflict {
					continue
				}
				for _, c := range t.DeleteRange(lo, hi) {
					touched[string(c.Key)] = true
				}
				sub += w.m.delete(main, sub, lo, hi)
			}
			if w.rnd.Intn(3) == 0 {
				at := *w.m
				if sub > 0 {
					at.rev = main
				}
				req := w.request()
				got, err := t.Range(req)
				w.compare("txn", &at, req, got, err)
			}
		}
		if n := len(t.End()); n != sub {
			w.t.Fatalf("changes: %d, want %d", n, sub)
		}
		if sub > 0 {
			w.m.rev = main
		}
		if before != nil && w.rnd.Intn(2) == 0 {
			w.views = append(w.views, heldView{w.s.View(), before})
			before = nil
		}
	}
	if w.rnd.Intn(12) == 0 {
		w.compactInto(b)
	}
	if err := b.Commit(); err != nil {
		w.t.Fatal(err)
	}
	w.s.Publish()
}

// m0lease reads back the lease of the change made last.
func (w *world) m0lease(t *Txn) int64 { return int64(t.changes[len(t.changes)-1].Lease) }

func (w *world) compactInto(b engine.Batch) {
	rev := w.m.rev - ids.Revision(w.rnd.Intn(20)) + 1
	idle := w.s.sweep.idle() && len(w.s.scheduled) == 0
	_, err := w.s.Compact(b, rev)
	switch {
	case rev <= w.m.compact:
		if err != ErrCompacted {
			w.t.Fatalf("compact %d at %d: %v", rev, w.m.compact, err)
		}
	case rev > w.m.rev:
		if err != ErrFutureRev {
			w.t.Fatalf("compact %d of %d: %v", rev, w.m.rev, err)
		}
	case err != nil:
		w.t.Fatalf("compact %d: %v", rev, err)
	default:
		w.m.compactAt(rev)
		if !idle {
			delete(w.m.sums, rev)
		}
		for len(w.m.sums) > maxSums {
			least := rev
			for r := range w.m.sums {
				least = min(least, r)
			}
			delete(w.m.sums, least)
		}
	}
}

func (w *world) check() {
	v := w.s.View()
	defer v.Close()
	req := w.request()
	got, err := v.Range(req)
	w.compare("view", w.m, req, got, err)

	l, err := w.s.List(req)
	w.compareList("list", req, l, err)
	l, err = w.s.ListMessages(req, 1+w.rnd.Intn(500))
	w.compareList("messages", req, l, err)
	w.checkTree()
}

// checkTree recomputes the summaries in the nodes of the index.
func (w *world) checkTree() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	var last []byte
	var walk func(k kid)
	walk = func(k kid) {
		if got := k.n.summary(); got.extent != k.extent || got.maxMod < 0 || got.maxMod > k.maxMod || got.garb != k.garb {
			w.t.Fatalf("summary %+v, recomputed %+v", k, got)
		}
		for i := range k.n.ents {
			key := k.n.key(i)
			if last != nil && bytes.Compare(last, key) >= 0 {
				w.t.Fatalf("key %q after %q", key, last)
			}
			last = key
		}
		for i, c := range k.n.kids {
			if c.n == nil || c.n.size() == 0 {
				w.t.Fatal("empty child")
			}
			if i > 0 && string(last) >= k.n.seps[i] {
				w.t.Fatalf("separator %q after %q", k.n.seps[i], last)
			}
			walk(c)
		}
	}
	walk(w.s.tree.root)
}

func (w *world) checkHash() {
	rev := max(0, w.m.rev-ids.Revision(w.rnd.Intn(30)))
	if w.rnd.Intn(2) == 0 && w.m.compact > 0 {
		rev = w.m.compact
	}
	if w.rnd.Intn(3) == 0 {
		rev = 0
	}
	if _, stored := w.m.sums[rev]; stored {
		w.settle() // the hash is stored at the end of the compaction
	}
	got, err := w.s.HashKV(context.Background(), rev)
	want, wantErr := w.m.hashKV(rev)
	if !errors.Is(err, wantErr) || err == nil && got != want {
		w.t.Fatalf("HashKV(%d) = %+v, %v; want %+v, %v", rev, got, err, want, wantErr)
	}
}

func (w *world) checkRecords() {
	from := max(1, w.m.compact, w.m.rev-ids.Revision(w.rnd.Intn(30)))
	if w.rnd.Intn(5) == 0 && w.m.compact > 1 {
		if _, err := w.s.Records(w.m.compact-1, 0, 0, nil); err != ErrCompacted {
			w.t.Fatalf("Records below the compact revision: %v", err)
		}
	}
	w.settle()
	var got, want []string
	for next, end := from, w.s.published.Load().rev; next <= end; {
		var err error
		before := next
		next, err = w.s.Records(next, w.rnd.Intn(4), w.rnd.Intn(300), func(rev Revision, tomb bool, kv []byte) error {
			got = append(got, fmt.Sprint(rev, tomb, kv))
			return nil
		})
		if err != nil || next <= before {
			w.t.Fatalf("Records from %d: next %d, %v", before, next, err)
		}
	}
	for _, r := range w.m.recs {
		if r.rev.Main >= from && !r.gone {
			b, _ := proto.Marshal(r.kv)
			want = append(want, fmt.Sprint(r.rev, r.tomb, b))
		}
	}
	if !reflect.DeepEqual(got, want) {
		w.t.Fatalf("Records from %d:\n%v\nwant\n%v", from, got, want)
	}
}

// settle closes the views and lets all background work finish; then the engine must hold
// exactly the records of the model.
func (w *world) settle() {
	for _, h := range w.views {
		h.v.Close()
	}
	w.views = nil
	for w.s.Step() {
	}
	if !w.s.sweep.idle() {
		w.t.Fatal("background work is stuck")
	}
	var want [][]byte
	for _, r := range w.m.recs {
		if !r.gone {
			want = append(want, AppendRevision(nil, r.rev, r.tomb))
		}
	}
	it, err := w.eng.NewIter(engine.Key.Bounds())
	if err != nil {
		w.t.Fatal(err)
	}
	defer it.Close()
	i := 0
	for ok := it.First(); ok; ok = it.Next() {
		if i >= len(want) || !bytes.Equal(want[i], it.Key()[1:]) {
			w.t.Fatalf("record %d of %d is %x", i, len(want), it.Key()[1:])
		}
		i++
	}
	if i != len(want) {
		w.t.Fatalf("%d records, want %d", i, len(want))
	}
}

func (w *world) hold() {
	if len(w.views) > 3 {
		i := w.rnd.Intn(len(w.views))
		h := w.views[i]
		w.views = append(w.views[:i], w.views[i+1:]...)
		req := w.request()
		if req.Revision > 0 {
			req.Revision = int64(max(1, h.m.rev-ids.Revision(w.rnd.Intn(10))))
		}
		got, err := h.v.Range(req)
		w.compare("held view", h.m, req, got, err)
		h.v.Close()
		return
	}
	w.views = append(w.views, heldView{w.s.View(), w.m.clone()})
}

func (w *world) reopen() {
	w.s.Close()
	w.views = nil
	w.eng = w.crash()
	w.m = w.kept.clone()
	w.open()
}

func (w *world) open() {
	s, err := Open(w.eng, w.opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
	if v := s.View(); v.Rev() != w.m.rev || v.CompactRev() != w.m.compact {
		w.t.Fatalf("opened at revision %d, compacted %d; want %d, %d", v.Rev(), v.CompactRev(), w.m.rev, w.m.compact)
	} else {
		v.Close()
	}
}

func (w *world) run(steps int) {
	w.open()
	w.kept = w.m.clone()
	for range steps {
		switch n := w.rnd.Intn(100); {
		case n < 50:
			w.txns()
		case n < 75:
			w.check()
		case n < 82:
			w.s.Step()
		case n < 87:
			w.hold()
		case n < 92:
			w.checkHash()
		case n < 96:
			w.checkRecords()
		case n < 98:
			if err := w.eng.Flush(context.Background()); err != nil {
				w.t.Fatal(err)
			}
			w.kept = w.m.clone()
		default:
			w.reopen()
		}
	}
	w.settle()
	w.s.Close()
}

func TestModelMem(t *testing.T) {
	for seed := range int64(12) {
		eng := mem.New()
		w := &world{t: t, rnd: rand.New(rand.NewSource(seed)), eng: eng, m: newModel(), keys: 10 + int(seed)*20,
			opts: Options{Manual: true, CompactionBatch: 7, PinBytes: 64 << 10, HashKeys: 1 + int(seed%3)*20}}
		w.crash = func() engine.Engine { eng = eng.Crash(); return eng }
		w.run(400)
	}
}

func crc(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
