package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/lease"
)

func openMem(t *testing.T, o Options) (*mem.Engine, *Store) {
	t.Helper()
	eng := mem.New()
	s, err := Open(eng, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return eng, s
}

// apply runs f as one transaction and publishes it.
func apply(t *testing.T, s *Store, f func(t *Txn)) []Change {
	t.Helper()
	b := s.eng.NewBatch()
	txn := s.Begin(b)
	f(txn)
	changes := txn.End()
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	s.Publish()
	return changes
}

func compact(t *testing.T, s *Store, rev ids.Revision) <-chan error {
	t.Helper()
	b := s.eng.NewBatch()
	done, err := s.Compact(b, rev)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	s.Publish()
	return done
}

func decode(t *testing.T, kv []byte) *mvccpb.KeyValue {
	t.Helper()
	out := &mvccpb.KeyValue{}
	if err := proto.Unmarshal(kv, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// A transcript of what changes look like to the packages lease and watch: revisions, subs,
// create, version and leases.
func TestChanges(t *testing.T) {
	_, s := openMem(t, Options{Manual: true})
	var log strings.Builder
	step := func(name string, f func(t *Txn)) {
		fmt.Fprintf(&log, "%s:", name)
		for _, c := range apply(t, s, f) {
			kv := decode(t, c.KV)
			what := "put"
			if c.Delete {
				what = "delete"
			}
			fmt.Fprintf(&log, " %s %s@%d.%d create=%v/%d version=%d lease=%d->%d;", what, c.Key, c.Rev.Main, c.Rev.Sub,
				c.Create, kv.CreateRevision, kv.Version, c.PrevLease, c.Lease)
			if !bytes.Equal(c.Key, kv.Key) || !c.Delete && ids.Revision(kv.ModRevision) != c.Rev.Main {
				t.Errorf("change %+v holds %v", c, kv)
			}
		}
		fmt.Fprintf(&log, " rev %d\n", s.Rev())
	}
	step("two puts", func(t *Txn) { t.Put([]byte("a"), []byte("1"), 0); t.Put([]byte("b"), nil, 7) })
	step("again", func(t *Txn) { t.Put([]byte("b"), []byte("2"), 8) })
	step("delete nothing", func(t *Txn) { t.DeleteRange([]byte("x"), nil) })
	step("read only", func(t *Txn) { t.Lookup([]byte("a")) })
	step("delete all, put one", func(t *Txn) { t.DeleteRange([]byte("a"), []byte{0}); t.Put([]byte("c"), nil, 0) })
	step("back", func(t *Txn) { t.Put([]byte("b"), nil, 0) })
	want := `two puts: put a@2.0 create=true/2 version=1 lease=0->0; put b@2.1 create=true/2 version=1 lease=0->7; rev 2
again: put b@3.0 create=false/2 version=2 lease=7->8; rev 3
delete nothing: rev 3
read only: rev 3
delete all, put one: delete a@4.0 create=false/0 version=0 lease=0->0; delete b@4.1 create=false/0 version=0 lease=8->0; put c@4.2 create=true/4 version=1 lease=0->0; rev 4
back: put b@5.0 create=true/5 version=1 lease=0->0; rev 5
`
	if log.String() != want {
		t.Errorf("got\n%swant\n%s", log.String(), want)
	}
	v := s.View()
	defer v.Close()
	if m, ok := v.Lookup([]byte("b")); !ok || m != (Meta{Create: 5, Mod: 5, Version: 1}) {
		t.Errorf("Lookup: %+v, %v", m, ok)
	}
	if kv, err := v.Get([]byte("b"), 3); err != nil || decode(t, kv).Lease != 8 {
		t.Errorf("Get at 3: %x, %v", kv, err)
	}
	if kv, err := v.Get([]byte("b"), 4); err != nil || kv != nil {
		t.Errorf("Get of a deleted key: %x, %v", kv, err)
	}
	if _, err := v.Get([]byte("b"), 6); err != ErrFutureRev {
		t.Errorf("Get at 6: %v", err)
	}
}

// Changes of different transactions share memory; none may overwrite another's.
func TestChangesAreKept(t *testing.T) {
	_, s := openMem(t, Options{Manual: true})
	r := rand.New(rand.NewSource(1))
	var all, copies [][]Change
	keep := func(c []Change) {
		all = append(all, c)
		copies = append(copies, append([]Change(nil), c...))
	}
	puts := func(t *Txn, n int) {
		for i := range n {
			t.Put(fmt.Appendf(nil, "%d", i), nil, 0)
		}
	}
	// The first exceeds its block after a result has been returned.
	apply(t, s, func(t *Txn) { puts(t, 3); keep(t.DeleteRange([]byte("0"), []byte{0})); puts(t, 50) })
	apply(t, s, func(t *Txn) { puts(t, 20) })
	for range 200 {
		keep(apply(t, s, func(t *Txn) {
			for range 1 + r.Intn(20) {
				t.Put(fmt.Appendf(nil, "%d", r.Intn(1000)), nil, 0)
			}
			keep(t.DeleteRange([]byte(fmt.Sprint(r.Intn(1000))), []byte(fmt.Sprint(r.Intn(1000)))))
			for range r.Intn(40) {
				t.Put(fmt.Appendf(nil, "x%d", r.Intn(1000)), nil, 0)
			}
		}))
	}
	for i := range all {
		for j, c := range all[i] {
			if c.Rev != copies[i][j].Rev || !bytes.Equal(c.KV, copies[i][j].KV) {
				t.Fatalf("change %d.%d became %+v, was %+v", i, j, c, copies[i][j])
			}
		}
	}
}

// brokenEngine fails commits after some time.
type brokenEngine struct {
	engine.Engine
	left int
}

type brokenBatch struct {
	engine.Batch
	e *brokenEngine
}

var errBroken = errors.New("broken")

func (e *brokenEngine) NewBatch() engine.Batch { return &brokenBatch{e.Engine.NewBatch(), e} }

func (b *brokenBatch) Commit() error {
	if b.e.left--; b.e.left < 0 {
		return errBroken
	}
	return b.Batch.Commit()
}

// A paged list retains the root of its first page, within the bound on such roots.
func TestPins(t *testing.T) {
	_, s := openMem(t, Options{Manual: true, PinBytes: 20_000})
	for i := range 2000 {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%04d", i), nil, 0) })
	}
	page := func(rev ids.Revision) {
		v := s.View()
		defer v.Close()
		res, err := v.Range(&pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 10, Revision: int64(rev)})
		if err != nil || res.Count != 2000 || !res.More {
			t.Errorf("page: %+v, %v", res, err)
		}
	}
	page(0)
	first := s.Rev()
	if s.pins.find(first) == nil {
		t.Fatal("no pin after a page that was cut off")
	}
	for i := range 2000 {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%04d", i), nil, 0) })
		if i%50 == 0 {
			page(0)
			page(first)
		}
		s.pins.mu.Lock()
		total, n := s.pins.total, len(s.pins.list)
		s.pins.mu.Unlock()
		if total > 20_000 || n > maxPins {
			t.Fatalf("%d pins hold %d bytes", n, total)
		}
	}
	if s.pins.find(first) != nil {
		t.Error("the oldest pin is kept beyond the bound")
	}
	page(first) // without the pin it is slower, but the result is the same
}

func TestOpenErrors(t *testing.T) {
	kv := func(k *mvccpb.KeyValue) []byte {
		b, err := proto.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := kv(&mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 5, ModRevision: 5, Version: 1})
	rev := string(AppendRevision(nil, Revision{Main: 5}, false))
	for _, tt := range []struct {
		name, key string
		value     []byte
		want      string // in the error; "" is no error
	}{
		{"good", rev, good, ""},
		{"empty, of restore --mark-compacted", rev, nil, ""},
		{"short key", rev[:16], good, "length 16"},
		{"separator", strings.Replace(rev, "_", "-", 1), good, "separator"},
		{"tombstone mark", rev + "x", good, "length 18"},
		{"negative revision", "\xff" + rev[1:], good, "out of range"},
		{"text", "something else", good, "length 14"},
		{"cut record", rev, good[:len(good)-1], rev},
		{"other revision", rev, kv(&mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 4, ModRevision: 4, Version: 1}), `"k" has create revision 4`},
		{"no version", rev, kv(&mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 4, ModRevision: 5}), "version 0"},
		{"group", rev, []byte{0x0b, 0x0c}, "malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eng := mem.New()
			b := eng.NewBatch()
			b.Set(engine.Key.K(AppendRevision(nil, Revision{Main: 2}, false)), kv(&mvccpb.KeyValue{Key: []byte("a"), CreateRevision: 2, ModRevision: 2, Version: 1}))
			b.Set(engine.Key.K([]byte(tt.key)), tt.value)
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			s, err := Open(eng, Options{Manual: true})
			if tt.want == "" {
				if err != nil || s.Rev() != 5 {
					t.Fatalf("Open: %v", err)
				}
				return
			}
			var bad *engine.CorruptionError
			if !errors.As(err, &bad) {
				t.Fatalf("Open: %v, want a CorruptionError", err)
			}
			if want := tt.want; !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), fmt.Sprintf("%x", want)) {
				t.Errorf("Open: %v, want %q in it", err, want)
			}
		})
	}
	eng := mem.New()
	b := eng.NewBatch()
	b.Set(engine.Meta.K([]byte("finishedCompactRev")), []byte("?"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(eng, Options{}); err == nil || !strings.Contains(err.Error(), "finishedCompactRev") {
		t.Errorf("Open with a bad meta key: %v", err)
	}
}

// A record that is in the index but not in the engine is corruption, not an empty
// answer.
func TestMissingRecord(t *testing.T) {
	eng, s := openMem(t, Options{Manual: true})
	for i := range 50 {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%02d", i), nil, 0) })
	}
	b := eng.NewBatch()
	b.Delete(recordKey(Revision{Main: 10}))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	v := s.View()
	defer v.Close()
	var bad *engine.CorruptionError
	if _, err := v.Get([]byte("k08"), 0); !errors.As(err, &bad) || !strings.Contains(bad.File, fmt.Sprintf("%x", recordKey(Revision{Main: 10})[1:])) {
		t.Errorf("Get: %v", err)
	}
	if _, err := v.Range(&pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}); !errors.As(err, &bad) {
		t.Errorf("Range: %v", err)
	}
}

// Readers of all kinds run next to a writer and compactions. Every answer must be
// consistent, which the values show, as they contain their revision.
func TestConcurrency(t *testing.T) {
	_, s := openMem(t, Options{CompactionBatch: 50, CompactionPause: time.Microsecond, PinBytes: 100_000})
	const keys, revs = 200, 1500
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for seed := range int64(3) {
		readers.Go(func() {
			r := rand.New(rand.NewSource(seed))
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := readOnce(s, r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	r := rand.New(rand.NewSource(9))
	var last <-chan error
	for i := range revs {
		b := s.eng.NewBatch()
		for range 1 + r.Intn(3) {
			txn := s.Begin(b)
			rev := s.Rev() + 1
			from := r.Intn(keys)
			for k := from; k < min(from+1+r.Intn(4), keys); k++ {
				txn.Put(fmt.Appendf(nil, "k%03d", k), fmt.Appendf(nil, "%d", rev), 0)
			}
			if r.Intn(4) == 0 {
				txn.DeleteRange(fmt.Appendf(nil, "k%03d", from+10), fmt.Appendf(nil, "k%03d", from+20))
			}
			txn.End()
		}
		if i%100 == 99 {
			done, err := s.Compact(b, s.Rev()-ids.Revision(r.Intn(20)))
			if err != nil {
				t.Fatal(err)
			}
			last = done
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		s.Publish()
	}
	close(stop)
	readers.Wait()
	<-last
	v := s.View()
	defer v.Close()
	if live, all := v.Keys(), records(t, s); int64(all) < live || all > 200+20*4+200 {
		t.Errorf("%d live keys, %d records", live, all)
	}
}

func readOnce(s *Store, r *rand.Rand) error {
	v := s.View()
	defer v.Close()
	req := &pb.RangeRequest{Key: fmt.Appendf(nil, "k%03d", r.Intn(200)), RangeEnd: []byte{0}, Limit: int64(r.Intn(60))}
	if oldest := max(v.CompactRev(), 1); r.Intn(2) == 0 {
		req.Revision = int64(oldest + ids.Revision(r.Int63n(int64(v.Rev()-oldest+1))))
	}
	at := ids.Revision(req.Revision)
	if at == 0 {
		at = v.Rev()
	}
	var answers [2][][]byte
	for i := range answers {
		res, err := v.Range(req)
		if err != nil {
			return fmt.Errorf("range at %d of [%d, %d]: %w", at, v.CompactRev(), v.Rev(), err)
		}
		if !res.More && res.Count != int64(len(res.KVs)) || res.More && res.Count <= req.Limit {
			return fmt.Errorf("count %d, %d records, more %v", res.Count, len(res.KVs), res.More)
		}
		answers[i] = res.KVs
	}
	for i, kv := range answers[0] {
		rec, err := parseRecord(kv)
		if err != nil {
			return err
		}
		if rec.mod > at || string(rec.value) != fmt.Sprint(rec.mod) || !bytes.Equal(kv, answers[1][i]) {
			return fmt.Errorf("at %d: key %s of revision %d holds %q", at, rec.key, rec.mod, rec.value)
		}
	}
	if r.Intn(10) == 0 {
		if _, err := s.HashKV(context.Background(), 0); err != nil {
			return fmt.Errorf("HashKV: %w", err)
		}
	}
	if r.Intn(10) == 0 {
		from := max(v.CompactRev(), 1) + ids.Revision(r.Int63n(20))
		_, err := s.Records(from, 20, 0, func(rev Revision, tomb bool, kv []byte) error {
			rec, err := parseRecord(kv)
			if err == nil && !tomb && rec.mod != rev.Main {
				err = fmt.Errorf("record of revision %d says %d", rev.Main, rec.mod)
			}
			return err
		})
		if err != nil && err != ErrCompacted {
			return fmt.Errorf("records: %w", err)
		}
	}
	return nil
}

// Edge cases of the hash that random operations rarely hit, against the model:
// compactions that keep nothing, and tombstones at exactly the compact revision.
func TestHashKVEdges(t *testing.T) {
	for _, script := range []string{
		"put a, del a, compact, put b, compact",
		"put a, del a, compact, put b, del b, put c, del c, put d, compact at 8",
		"put a, put b, compact, del a, del b, put c, del c, put d, del d, compact at 8, put e, compact at 9",
		"put a, put b, del a, compact, del b, compact, put a, compact",
		"put a, del a, put b, del b, compact, compact at 2, put c, del c, compact",
	} {
		_, s := openMem(t, Options{Manual: true, HashKeys: 1})
		m := newModel()
		for _, op := range strings.Split(script, ", ") {
			var name, arg string
			var rev ids.Revision
			if n, _ := fmt.Sscanf(op, "compact at %d", &rev); n == 1 || op == "compact" {
				if n == 0 {
					rev = m.rev
				}
				if rev <= m.compact {
					continue
				}
				compact(t, s, rev)
				for s.Step() {
				}
				m.compactAt(rev)
			} else if _, err := fmt.Sscan(op, &name, &arg); err != nil {
				t.Fatal(err)
			} else if name == "put" {
				apply(t, s, func(t *Txn) { t.Put([]byte(arg), nil, 0) })
				m.rev++
				m.put(m.rev, 0, []byte(arg), nil, 0)
			} else {
				apply(t, s, func(t *Txn) { t.DeleteRange([]byte(arg), nil) })
				m.rev++
				m.delete(m.rev, 0, []byte(arg), nil)
			}
			for rev := max(m.compact, 0); rev <= m.rev; rev++ {
				got, err := s.HashKV(context.Background(), rev)
				want, wantErr := m.hashKV(rev)
				if err != wantErr || got != want {
					t.Errorf("%s; after %s: HashKV(%d) = %+v, %v; want %+v, %v", script, op, rev, got, err, want, wantErr)
				}
			}
		}
	}
}

// Cancelling the context stops a hash.
func TestHashKVCancelled(t *testing.T) {
	_, s := openMem(t, Options{Manual: true})
	for i := range 3000 {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "%d", i), nil, 0) })
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.HashKV(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("HashKV: %v", err)
	}
}

func TestLeases(t *testing.T) {
	eng, s := openMem(t, Options{Manual: true})
	for i := range 100 {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%02d", i), nil, lease.ID(i%3)) })
	}
	apply(t, s, func(t *Txn) { t.DeleteRange([]byte("k5"), []byte("k6")) })
	want := ""
	s.Leases(func(k []byte, l lease.ID) { want += fmt.Sprintf("%s=%d ", k, l) })
	if !strings.HasPrefix(want, "k01=1 k02=2 k04=1 ") || strings.Contains(want, "k50") {
		t.Errorf("leases %s", want)
	}
	s2, err := Open(eng, Options{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	s2.Leases(func(k []byte, l lease.ID) { got += fmt.Sprintf("%s=%d ", k, l) })
	if got != want {
		t.Errorf("after Open: %s, want %s", got, want)
	}
}

// Long keys fill leaves unevenly; the tree must stay correct and compact.
func TestLongKeys(t *testing.T) {
	eng, s := openMem(t, Options{Manual: true})
	r := rand.New(rand.NewSource(1))
	for range 300 {
		key := append([]byte("k"), bytes.Repeat([]byte{byte('a' + r.Intn(20))}, 1+r.Intn(20_000))...)
		apply(t, s, func(t *Txn) { t.Put(key, nil, 0) })
	}
	w := &world{t: t, s: s}
	w.checkTree()
	s2, err := Open(eng, Options{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	w.s = s2
	w.checkTree()
	if a, b := s.tree.root.live, s2.tree.root.live; a != b {
		t.Errorf("%d keys, after Open %d", a, b)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\n\x01k\x10\x02\x18\x03 \x04*\x01v0\x05"))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseRecord(b)
		want := &mvccpb.KeyValue{}
		if err != nil || proto.Unmarshal(b, want) != nil {
			return
		}
		have := &mvccpb.KeyValue{Key: got.key, Value: got.value, CreateRevision: int64(got.create),
			ModRevision: int64(got.mod), Version: got.version, Lease: int64(got.lease)}
		want.ProtoReflect().SetUnknown(nil)
		if !proto.Equal(have, want) {
			t.Fatalf("%x: %v, want %v", b, have, want)
		}
		canon, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if enc, key := encodeRecord(got); !bytes.Equal(enc, canon) || !bytes.Equal(key, got.key) {
			t.Fatalf("encoded %x, want %x", enc, canon)
		}
	})
}

func FuzzParseRevision(f *testing.F) {
	f.Add(AppendRevision(nil, Revision{1, 2}, false))
	f.Add(AppendRevision(nil, Revision{1 << 60, 7}, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		rev, tomb, err := ParseRevision(b)
		if err == nil && !bytes.Equal(AppendRevision(nil, rev, tomb), b) {
			t.Fatalf("%x is %v, %v, which is %x", b, rev, tomb, AppendRevision(nil, rev, tomb))
		}
	})
}

// crcJoin against the direct computation.
func FuzzCRCJoin(f *testing.F) {
	f.Add([]byte("head"), []byte("tail"))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if got, want := crcJoin(crc(a), crc(b), int64(len(b))), crc(append(bytes.Clone(a), b...)); got != want {
			t.Fatalf("%x + %x: %08x, want %08x", a, b, got, want)
		}
	})
}

// No view enters an epoch that has ended, and the epoch is drained when the last one leaves.
func TestEpoch(t *testing.T) {
	drained := func(e *epoch) bool {
		select {
		case <-e.drained:
			return true
		default:
			return false
		}
	}
	e := newEpoch()
	if first, second := e.enter(), e.enter(); !first || !second {
		t.Fatal("an open epoch refuses")
	}
	e.leave()
	e.end()
	if e.enter() || drained(e) {
		t.Error("entered, or drained, while one is inside an epoch that is over")
	}
	e.leave()
	if !drained(e) || e.enter() {
		t.Error("not drained after the last one left")
	}
	if e = newEpoch(); drained(e) {
		t.Error("drained before the end")
	}
	if e.end(); !drained(e) {
		t.Error("an empty epoch does not drain at its end")
	}
}

// TestOrderAmongEquals records what etcd 3.7.3 answers if more keys compare equal than the
// limit allows.
func TestOrderAmongEquals(t *testing.T) {
	_, s := openMem(t, Options{})
	put := func(key, value string) { apply(t, s, func(t *Txn) { t.Put([]byte(key), []byte(value), 0) }) }
	for _, k := range []int{11, 14, 15, 19, 20, 22, 27, 29, 30, 33} {
		put(fmt.Sprint("put", k), "v")
	}
	for k := 10; k < 35; k++ {
		put(fmt.Sprint("put", k), fmt.Sprint("w", k%3))
	}
	v := s.View()
	defer v.Close()
	for _, c := range []struct {
		target pb.RangeRequest_SortTarget
		order  pb.RangeRequest_SortOrder
		want   string
	}{
		{pb.RangeRequest_VERSION, pb.RangeRequest_DESCEND, " put20 put11 put33 put30"},
		{pb.RangeRequest_VALUE, pb.RangeRequest_ASCEND, " put18 put33 put12 put30"},
	} {
		res, err := v.Range(&pb.RangeRequest{Key: []byte("put"), RangeEnd: []byte("puu"), SortTarget: c.target, SortOrder: c.order, Limit: 4})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, kv := range res.KVs {
			got += " " + string(decode(t, kv).Key)
		}
		if got != c.want {
			t.Errorf("by %v, %v: got%s, want%s", c.target, c.order, got, c.want)
		}
	}
}

// Pages of one list are read at the revision of the first, from the root that was pinned for
// that revision, not from another pinned root.
func TestPagesAreOfTheirRevision(t *testing.T) {
	_, s := openMem(t, Options{Manual: true})
	for i := range 20 {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%02d", i), []byte("0"), 0) })
	}
	page := func(from string, rev ids.Revision) *RangeResult {
		t.Helper()
		v := s.View()
		defer v.Close()
		res, err := v.Range(&pb.RangeRequest{Key: []byte(from), RangeEnd: []byte("l"), Limit: 5, Revision: int64(rev)})
		if err != nil || !res.More {
			t.Fatalf("page from %s at %d: %+v, %v", from, rev, res, err)
		}
		return res
	}
	began := map[ids.Revision]string{}
	for round := range 9 {
		value := fmt.Sprint(round)
		apply(t, s, func(t *Txn) { t.Put([]byte("k10"), []byte(value), 0) })
		page("k", 0)
		began[s.Rev()] = value
		if s.pins.find(s.Rev()) == nil {
			t.Fatalf("no root was kept for revision %d", s.Rev())
		}
	}
	for rev, value := range began {
		rec, err := parseRecord(page("k10", rev).KVs[0])
		if err != nil || string(rec.value) != value {
			t.Errorf("the list at revision %d goes on with the value %q, it was %q: %v", rev, rec.value, value, err)
		}
	}
}
