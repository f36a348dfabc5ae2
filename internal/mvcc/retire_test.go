package mvcc

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A reader that has got hold of a store just before another replaced it finds the state of the
// other. The old one is in use as long as a view of it is open, of whatever age.
func TestRetire(t *testing.T) {
	_, old := openMem(t, Options{Manual: true})
	apply(t, old, func(t *Txn) { t.Put([]byte("a"), []byte("old"), 0) })
	apply(t, old, func(t *Txn) { t.Put([]byte("a"), []byte("older"), 0) })
	early := old.View()
	compact(t, old, 2) // ends the epoch of the view
	late := old.View()
	_, next := openMem(t, Options{Manual: true})
	for range 5 {
		apply(t, next, func(t *Txn) { t.Put([]byte("a"), []byte("new"), 0) })
	}
	old.Close()
	old.Retire(next)

	if v := old.View(); v.Rev() != 6 {
		t.Errorf("a new view has revision %d", v.Rev())
	} else {
		v.Close()
	}
	key := &pb.RangeRequest{Key: []byte("a")}
	if l, err := old.List(key); err != nil || l.Revision != 6 {
		t.Errorf("a list of revision %v: %v", l, err)
	} else {
		l.Close()
	}
	if h, err := old.HashKV(t.Context(), 0); err != nil || h.CurrentRev != 6 || h.CompactRev != -1 {
		t.Errorf("a hash: %+v, %v", h, err)
	}
	if rev, err := old.Records(5, 0, 0, func(Revision, bool, []byte) error { return nil }); err != nil || rev != 7 {
		t.Errorf("records up to %d: %v", rev, err)
	}
	for _, v := range []*View{late, early} {
		if old.OpenViews() == 0 {
			t.Error("a view is forgotten")
		}
		if kv, err := v.Get([]byte("a"), 0); err != nil || string(decode(t, kv).Value) != "older" {
			t.Errorf("an open view has %q, %v", kv, err)
		}
		v.Close()
	}
	if n := old.OpenViews(); n != 0 || next.OpenViews() != 0 {
		t.Errorf("%d and %d views are open", n, next.OpenViews())
	}
}
