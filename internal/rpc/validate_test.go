package rpc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/pkg/v3/adt"
)

// slowOverlaps is a direct implementation of the rules: it compares every put with every put
// and delete before it.
func slowOverlaps(o []*pb.RequestOp) (puts map[string]bool, dels []span, dup bool) {
	hit := func(k string) bool {
		for _, d := range dels {
			if string(d.from) <= k && (d.to == nil || k < string(d.to)) {
				return true
			}
		}
		return false
	}
	puts = make(map[string]bool)
	for _, op := range o {
		if d := op.GetRequestDeleteRange(); d != nil {
			dels = append(dels, deleted(d))
		}
	}
	for _, op := range o {
		t := op.GetRequestTxn()
		if t == nil {
			continue
		}
		yes, yesDels, dup1 := slowOverlaps(t.Success)
		no, noDels, dup2 := slowOverlaps(t.Failure)
		if dup1 || dup2 {
			return nil, nil, true
		}
		for k := range yes {
			if puts[k] || hit(k) {
				return nil, nil, true
			}
			puts[k] = true
		}
		for k := range no {
			if puts[k] && !yes[k] || hit(k) {
				return nil, nil, true
			}
			puts[k] = true
		}
		dels = append(append(dels, yesDels...), noDels...)
	}
	for _, op := range o {
		if p := op.GetRequestPut(); p != nil {
			if k := string(p.Key); puts[k] || hit(k) {
				return nil, nil, true
			}
			puts[string(p.Key)] = true
		}
	}
	return puts, dels, false
}

// overlapsInTree is overlaps with etcd's own interval tree.
func overlapsInTree(ops []*pb.RequestOp) (puts map[string]bool, dels adt.IntervalTree, err error) {
	puts, dels = map[string]bool{}, adt.NewIntervalTree()
	add := func(key string) error {
		if puts[key] || dels.Intersects(adt.NewStringAffinePoint(key)) {
			return rpctypes.ErrGRPCDuplicateKey
		}
		puts[key] = true
		return nil
	}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			s := deleted(d)
			dels.Insert(adt.NewStringAffineInterval(string(s.from), string(s.to)), nil)
		}
	}
	for _, op := range ops {
		t := op.GetRequestTxn()
		if t == nil {
			continue
		}
		yes, yesDels, err := overlapsInTree(t.Success)
		if err != nil {
			return nil, nil, err
		}
		no, noDels, err := overlapsInTree(t.Failure)
		if err != nil {
			return nil, nil, err
		}
		for key := range no {
			yes[key] = true // both branches may put a key
		}
		for key := range yes {
			if err := add(key); err != nil {
				return nil, nil, err
			}
		}
		everything := adt.NewStringAffineInterval("\x00", "")
		dels.Union(yesDels, everything)
		dels.Union(noDels, everything)
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if err := add(string(p.Key)); err != nil {
				return nil, nil, err
			}
		}
	}
	return puts, dels, nil
}

func randomOps(rnd *rand.Rand, depth int) (out []*pb.RequestOp) {
	key := func() string { return fmt.Sprintf("%02d", rnd.IntN(60)) }
	for range rnd.IntN(5) {
		switch n := rnd.IntN(10); {
		case n < 4:
			out = append(out, put(key(), ""))
		case n < 5:
			out = append(out, del(key(), ""))
		case n < 6:
			k := rnd.IntN(58)
			out = append(out, del(fmt.Sprintf("%02d", k), fmt.Sprintf("%02d", k+rnd.IntN(6)-1)))
		case n < 7:
			out = append(out, del(key(), "\x00"))
		case n < 9 && depth > 0:
			out = append(out, txn(randomOps(rnd, depth-1), randomOps(rnd, depth-1)))
		default:
			out = append(out, get(key()))
		}
	}
	return out
}

func TestOverlapsAgainstPlainRules(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	found := 0
	for i := range 20_000 {
		o := randomOps(rnd, 3)
		w, err := overlaps(o)
		if _, _, inTree := overlapsInTree(o); inTree != err {
			t.Fatalf("case %d: got %v, in the tree %v for %v", i, err, inTree, o)
		}
		puts, dels, dup := slowOverlaps(o)
		if (err != nil) != dup {
			t.Fatalf("case %d: got %v, want duplicate %v for %v", i, err, dup, o)
		}
		if dup {
			found++
			continue
		}
		if len(w.puts) != len(puts) {
			t.Fatalf("case %d: %d puts, want %d", i, len(w.puts), len(puts))
		}
		for j, k := range w.puts {
			if !puts[string(k)] || j > 0 && bytes.Compare(w.puts[j-1], k) >= 0 {
				t.Fatalf("case %d: puts %q", i, w.puts)
			}
		}
		for k := range 60 {
			key := fmt.Appendf(nil, "%02d", k)
			want := false
			for _, d := range dels {
				want = want || bytes.Compare(d.from, key) <= 0 && d.reaches(key)
			}
			if got := meet([][]byte{key}, w.dels); got != want {
				t.Fatalf("case %d: key %s deleted: got %v, want %v", i, key, got, want)
			}
		}
	}
	if found < 2000 || found > 18_000 {
		t.Errorf("%d of 20000 cases hold duplicates; the cases say little", found)
	}
}

// TestOddDeletes holds the answers of etcd 3.7.3, except for open-ended deletes.
func TestOddDeletes(t *testing.T) {
	for _, c := range []struct {
		ops []*pb.RequestOp
		dup bool
	}{
		{[]*pb.RequestOp{del("a", "\x00"), put("k", "")}, true},
		{[]*pb.RequestOp{del("l", "\x00"), put("k", "")}, false},
		{[]*pb.RequestOp{txn([]*pb.RequestOp{del("a", "\x00")}, nil), put("k", "")}, true},
		{[]*pb.RequestOp{put("k", ""), txn(nil, []*pb.RequestOp{del("a", "\x00")})}, true},
		{[]*pb.RequestOp{txn([]*pb.RequestOp{put("k", "")}, nil), txn([]*pb.RequestOp{del("a", "\x00")}, nil)}, false},
		{[]*pb.RequestOp{del("d", "a"), put("d", "")}, false},
		{[]*pb.RequestOp{del("d", "a"), put("c", "")}, false},
		{[]*pb.RequestOp{del("d", "a"), put("a", "")}, false},
		{[]*pb.RequestOp{del("d", "d"), put("d", "")}, false},
		{[]*pb.RequestOp{del("d", "a"), del("a", "\x00"), put("b", "")}, true},
	} {
		if err := checkTxn(&pb.TxnRequest{Failure: c.ops}, 128); (err != nil) != c.dup {
			t.Errorf("%v: %v, want a duplicate: %v", c.ops, err, c.dup)
		}
	}
}

// TestLargeTxn checks that the largest request within the limits is validated quickly.
func TestLargeTxn(t *testing.T) {
	n := 0
	var grow func(widths ...int) []*pb.RequestOp
	grow = func(widths ...int) []*pb.RequestOp {
		return many(widths[0], func(int) *pb.RequestOp {
			if len(widths) > 1 {
				return txn(grow(widths[1:]...), grow(widths[1:]...))
			}
			if n++; n%2 == 0 {
				return put(fmt.Sprint("p", n), "")
			}
			return del(fmt.Sprint("d", n), fmt.Sprint("d", n, "z"))
		})
	}
	req := &pb.TxnRequest{Success: grow(20, 40, 40)}
	start := time.Now()
	if err := checkTxn(req, 128); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("%d operations took %v", n, took)
	} else {
		t.Logf("%d operations took %v", n, took)
	}
}

func BenchmarkCheckTxn(b *testing.B) {
	for _, n := range []int{1, 8, 128} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			req := &pb.TxnRequest{Success: many(n, func(i int) *pb.RequestOp { return put(fmt.Sprint("key", i*7919%n), "") })}
			b.ReportAllocs()
			for b.Loop() {
				if err := checkTxn(req, 128); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
