package mvcc

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/clock"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
)

var everything = &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}

// countingEngine counts the records that iterators and Get have read, and the
// iterators that are open.
type countingEngine struct {
	*mem.Engine
	read, open int
	damage     func(v []byte) []byte
}

func (e *countingEngine) Get(dst, key []byte) ([]byte, error) {
	if key[0] == byte(engine.Key) {
		e.read++
	}
	return e.Engine.Get(dst, key)
}

func (e *countingEngine) NewIter(lower, upper []byte) (engine.Iterator, error) {
	it, err := e.Engine.NewIter(lower, upper)
	e.open++
	return &countingIter{it, e}, err
}

type countingIter struct {
	engine.Iterator
	e *countingEngine
}

func (i *countingIter) Value() ([]byte, error) {
	i.e.read++
	v, err := i.Iterator.Value()
	if i.e.damage != nil {
		v = i.e.damage(v)
	}
	return v, err
}

func (i *countingIter) Close() error {
	i.e.open--
	return i.Iterator.Close()
}

// listStore holds keys of 10 KB, written in the order given by perm.
func listStore(t *testing.T, o Options, perm []int) (*countingEngine, *Store) {
	t.Helper()
	e := &countingEngine{Engine: mem.New()}
	s, err := Open(e, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, i := range perm {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%06d", i), bytes.Repeat([]byte{byte(i)}, 10_000), 0) })
	}
	e.read = 0
	return e, s
}

func ascending(n int) []int {
	perm := make([]int, n)
	for i := range perm {
		perm[i] = i
	}
	return perm
}

// The memory of a list does not grow with its length, each piece is returned before the
// next is read, and meanwhile no iterator is open.
func TestListIsReadWhileItIsSent(t *testing.T) {
	const keys = 1000
	e, s := listStore(t, Options{Manual: true}, ascending(keys))
	for _, open := range []func() (*List, error){
		func() (*List, error) { return s.List(everything) },
		func() (*List, error) { return s.ListMessages(everything, 200_000) },
	} {
		e.read = 0
		l, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if l.Keys != keys || l.Bytes < keys*10_000 {
			t.Fatalf("announces %d records, %d bytes", l.Keys, l.Bytes)
		}
		got := 0
		for last := false; !last; {
			var b []byte
			if b, last, err = l.Next(); err != nil {
				t.Fatal(err)
			}
			got += len(b)
			if most := got/10_000 + pieceBytes/10_000 + 1; e.read > most {
				t.Fatalf("%d records have been read when %d bytes were handed out", e.read, got)
			}
			if e.open != 0 {
				t.Fatal("an iterator is open while the list is being sent")
			}
			if n := cap(l.piece.room.b); n > 2*pieceBytes {
				t.Fatalf("the list has %d bytes in memory", n)
			}
		}
		if int64(got) != l.Bytes {
			t.Errorf("%d bytes, %d were announced", got, l.Bytes)
		}
		l.Close()
	}
}

// Keys that were not written in their order are read in a few large pieces, by as many
// lists as the allowance permits.
func TestListInLargePieces(t *testing.T) {
	const keys = 3000
	e, s := listStore(t, Options{Manual: true}, rand.New(rand.NewSource(1)).Perm(keys))
	l, err := s.List(everything)
	if err != nil {
		t.Fatal(err)
	}
	pieces := 0
	for last := false; !last; pieces++ {
		if _, last, err = l.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if pieces != 2 || s.large.used.Load() == 0 {
		t.Errorf("%d pieces, %d bytes of large ones", pieces, s.large.used.Load())
	}
	l.Close()
	l.Close()
	if n := s.large.used.Load(); n != 0 {
		t.Errorf("%d bytes of large pieces are left", n)
	}
	s.large.used.Store(largePieces - 1)
	if l, err = s.List(everything); err != nil {
		t.Fatal(err)
	}
	if res := collect(t, l); len(res.KVs) != keys || cap(l.piece.elems) > keys/2 {
		t.Errorf("%d records, up to %d in a piece", len(res.KVs), cap(l.piece.elems))
	}
	if n := s.large.used.Load(); n != largePieces-1 {
		t.Errorf("a list has given back %d bytes that it never had", largePieces-1-n)
	}
	_ = e
}

// A list of keys alone reads nothing from the engine, so large pieces would not save
// anything.
func TestListOfKeysInSmallPieces(t *testing.T) {
	s, err := Open(mem.New(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const keys = 3000
	for _, i := range rand.New(rand.NewSource(1)).Perm(keys) {
		apply(t, s, func(t *Txn) { t.Put(append(fmt.Appendf(nil, "k%06d", i), make([]byte, 5000)...), nil, 0) })
	}
	l, err := s.List(&pb.RangeRequest{Key: everything.Key, RangeEnd: everything.RangeEnd, KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if res := collect(t, l); len(res.KVs) != keys || l.taken != 0 || cap(l.piece.elems) > keys/2 {
		t.Errorf("%d keys, up to %d in a piece, %d bytes of large ones", len(res.KVs), cap(l.piece.elems), l.taken)
	}
}

// The memory of a large piece serves the next list, and is returned after a while.
func TestLargeMemory(t *testing.T) {
	if b := mapMemory(1); b == nil {
		t.Skip("no memory outside the heap on this system")
	} else {
		unmapMemory(b)
	}
	c := clock.NewManual(time.Unix(1, 0))
	m := &largeMemory{clock: c}
	a, b := m.get(10<<20), m.get(9<<20)
	if &a.b[0] == &b.b[0] {
		t.Fatal("two rooms share their memory")
	}
	m.put(a)
	m.put(b)
	if r := m.get(9 << 20); r != b {
		t.Errorf("memory is not used again")
	}
	b.b[1<<20], b.b[len(b.b)-1] = 1, 1
	m.put(b)
	if r := m.get(1<<20 + 1); r != b {
		t.Errorf("memory is not used again for less")
	} else if !poison && (r.b[1<<20] != 1 || r.b[len(r.b)-1] != 0) {
		t.Errorf("the first part holds %d, want what it held; the rest %d, want it returned to the system", r.b[1<<20], r.b[len(r.b)-1])
	}
	m.put(b)
	if r := m.get(10 << 20); r == b {
		t.Errorf("got a room that is too small")
	} else {
		r.b[10<<20-1] = 1
		m.put(r)
	}
	c.Advance(keepSpare)
	if r := m.spare.Load(); r != nil {
		t.Errorf("%d bytes are still mapped", len(r.b))
	}
}

// A compaction does not wait for a list of a revision that it does not affect, and waits
// for any other only for a bounded time.
func TestListBesideCompaction(t *testing.T) {
	for _, overtaken := range []bool{false, true} {
		clk := clock.NewManual(time.Unix(0, 0))
		_, s := listStore(t, Options{Manual: true, Clock: clk}, ascending(500))
		for i := range 500 {
			apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%06d", i), []byte("second"), 0) })
		}
		l, err := s.List(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: 501})
		if err != nil {
			t.Fatal(err)
		}
		first, _, err := l.Next()
		if err != nil {
			t.Fatal(err)
		}
		size := len(first)
		rev := ids.Revision(501)
		if overtaken {
			rev++
		}
		done := compact(t, s, rev)
		finished := func() bool {
			for s.Step() {
			}
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				return true
			default:
				return false
			}
		}
		if finished() {
			t.Fatal("the compaction has not waited")
		}
		clk.Advance(renewAfter)
		if overtaken {
			if finished() {
				t.Fatal("the compaction has not waited for a list of what it deletes")
			}
			clk.Advance(overtakenFor)
		}
		if !finished() {
			t.Fatal("the compaction still waits")
		}
		for last := false; !last; {
			var b []byte
			if b, last, err = l.Next(); err != nil {
				break
			}
			size += len(b)
		}
		switch {
		case overtaken && !errors.Is(err, ErrCompacted):
			t.Errorf("a list whose revision has gone ends with %v", err)
		case !overtaken && (err != nil || int64(size) != l.Bytes):
			t.Errorf("%d of %d bytes, then %v", size, l.Bytes, err)
		}
		l.Close()
	}
}

// A list that is read in time is not affected by a compaction of its revision.
func TestListOvertakenForAMoment(t *testing.T) {
	clk := clock.NewManual(time.Unix(0, 0))
	_, s := listStore(t, Options{Manual: true, Clock: clk}, ascending(500))
	l, err := s.List(everything)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%06d", i), []byte("second"), 0) })
	}
	done := compact(t, s, s.Rev())
	clk.Advance(renewAfter)
	for s.Step() {
	}
	if res := collect(t, l); len(res.KVs) != 500 || decode(t, res.KVs[499]).Version != 1 {
		t.Errorf("%d records", len(res.KVs))
	}
	for s.Step() {
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A record whose length differs from the index is not returned.
func TestListOfDamagedRecord(t *testing.T) {
	e, s := listStore(t, Options{Manual: true}, ascending(200))
	e.damage = func(v []byte) []byte {
		if e.read == 150 {
			return v[:len(v)-1]
		}
		return v
	}
	l, err := s.List(everything)
	for last := false; err == nil && !last; {
		_, last, err = l.Next()
	}
	var damage *engine.CorruptionError
	if !errors.As(err, &damage) {
		t.Errorf("got %v", err)
	}
}
