package mvcc

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"quorate/internal/ids"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// While nobody reads, the writer changes the index in place.
func TestRootWithoutReaders(t *testing.T) {
	_, s := openMem(t, Options{Manual: true})
	put := func() *node {
		apply(t, s, func(t *Txn) { t.Put([]byte("a"), nil, 0) })
		return s.tree.root.n
	}
	s.View().Close()
	put() // the previous state was read, so this one has a root
	if s.published.Load().root.n == nil {
		t.Error("while there are readers, a state has no root")
	}
	n := put()
	if s.published.Load().root.n != nil {
		t.Error("a state has a root although nobody has read the one before")
	}
	if put() != n {
		t.Error("the writer has copied a node that no reader has")
	}
	v := s.View()
	defer v.Close()
	if put() == n {
		t.Error("the writer has changed a node that a reader has")
	}
	if kv, err := v.Get([]byte("a"), 0); err != nil || decode(t, kv).Version != 3 {
		t.Errorf("%x, %v", kv, err)
	}
}

// A root that is taken in the middle of a batch holds revisions that are not published.
// Readers of that state must not see them, nor later ones.
func TestRootInTheMiddleOfABatch(t *testing.T) {
	_, s := openMem(t, Options{Manual: true})
	step := func(f func(t *Txn)) { apply(t, s, f) }
	step(func(t *Txn) { t.Put([]byte("gone"), nil, 0); t.Put([]byte("kept"), []byte("old"), 7) })
	step(func(t *Txn) { t.Put([]byte("same"), nil, 0) })
	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	check := func(when string, v *View) {
		t.Helper()
		if v.Rev() != 3 || v.Keys() != 3 {
			t.Errorf("%s: revision %d, %d keys", when, v.Rev(), v.Keys())
		}
		if res, err := v.Range(all); err != nil || res.Count != 3 || res.Revision != 3 || len(res.KVs) != 3 || decode(t, res.KVs[1]).Lease != 7 {
			t.Errorf("%s: %+v, %v", when, res, err)
		}
		if m, ok := v.Lookup([]byte("kept")); !ok || m != (Meta{Create: 2, Mod: 2, Version: 1}) {
			t.Errorf("%s: kept is %+v, %v", when, m, ok)
		}
		if m, ok := v.Lookup([]byte("gone")); !ok || m.Mod != 2 {
			t.Errorf("%s: gone is %+v, %v", when, m, ok)
		}
		if m, ok := v.Lookup([]byte("new")); ok {
			t.Errorf("%s: new is %+v", when, m)
		}
		if _, err := v.Get([]byte("kept"), 4); err != ErrFutureRev {
			t.Errorf("%s: a revision of the batch: %v", when, err)
		}
	}
	b := s.eng.NewBatch()
	write := func(f func(t *Txn)) {
		txn := s.Begin(b)
		f(txn)
		txn.End()
	}
	write(func(t *Txn) { t.Put([]byte("kept"), []byte("newer"), 8); t.DeleteRange([]byte("gone"), nil) })
	if s.published.Load().root.n != nil {
		t.Fatal("nothing is tested: the state has a root already")
	}
	v := s.View()
	defer v.Close()
	check("in the batch", v)
	write(func(t *Txn) {
		t.Put([]byte("new"), nil, 0)
		t.Put([]byte("kept"), []byte("newest"), 9)
		t.DeleteRange([]byte("same"), nil)
	})
	check("later in the batch", v)
	late := s.View()
	defer late.Close()
	check("a late view", late)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	s.Publish()
	check("after the batch", v)
	after := s.View()
	defer after.Close()
	if res, err := after.Range(all); err != nil || res.Revision != 5 || res.Count != 2 {
		t.Errorf("after the batch: %+v, %v", res, err)
	}
}

// Rollback undoes changes that no reader may have in its root.
func TestRootAndRollback(t *testing.T) {
	_, s := openMem(t, Options{Manual: true})
	for range 2 {
		apply(t, s, func(t *Txn) { t.Put([]byte("a"), nil, 0) })
	}
	if s.published.Load().root.n != nil {
		t.Fatal("nothing is tested: the state has a root already")
	}
	b := s.eng.NewBatch()
	txn := s.Begin(b)
	txn.Savepoint()
	txn.Put([]byte("b"), nil, 0)
	txn.DeleteRange([]byte{0}, []byte{0})
	txn.Rollback()
	txn.End()
	v := s.View()
	defer v.Close()
	if n, i, ok := v.st.root.n.find([]byte("b")); ok || len(v.st.root.n.history(0)) != 1 {
		t.Errorf("a reader has %+v of a transaction that was rolled back", n.ents[i])
	}
}

// Histories share memory: the garbage collector visits each object, and in a store in service
// most keys have a history. What grows leaves its neighbors alone.
func TestHistoriesShareMemory(t *testing.T) {
	const keys = 2000
	var names [keys][]byte
	for i := range names {
		names[i] = fmt.Appendf(nil, "key%05d", i)
	}
	// Round r writes key i at revision r*keys+i.
	write := func(tr *tree, r int) {
		for i := range names {
			tr.put(names[i], ids.Revision(r*keys+i), 0, 0, 1)
		}
	}
	check := func(tr *tree, rounds int) {
		t.Helper()
		for i := range names {
			n, at, _ := tr.root.n.find(names[i])
			revs := append(slices.Clone(n.history(at)), n.ents[at])
			for r, m := range revs {
				if len(revs) != rounds || m.mod != ids.Revision((r+1)*keys+i) {
					t.Fatalf("revisions of key %d after %d rounds: %v", i, rounds, revs)
				}
			}
		}
	}
	tr := newTree()
	write(tr, 1)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	write(tr, 2)
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > keys/4 {
		t.Errorf("%d objects for the histories of %d keys", n, keys)
	}
	check(tr, 2)
	b := &builder{gen: 1}
	for i := range names {
		n, at, _ := tr.root.n.find(names[i])
		b.add(names[i], append(slices.Clone(n.history(at)), n.ents[at]), 0)
	}
	for _, tr := range []*tree{tr, {root: b.finish(), gen: 1}} {
		for r := 3; r < 6; r++ {
			write(tr, r)
			check(tr, r)
		}
	}
}
