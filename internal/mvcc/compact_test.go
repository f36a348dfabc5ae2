package mvcc

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/clock"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
)

// A view that is open when a compaction is scheduled reads as if there were none; the
// records are deleted when it is closed.
func TestCompactionWaitsForViews(t *testing.T) {
	_, s := openMem(t, Options{Manual: true})
	for i := range 5 {
		apply(t, s, func(t *Txn) { t.Put([]byte("k"), fmt.Appendf(nil, "%d", i), 0) })
	}
	old := s.View()
	done := compact(t, s, 6)
	for s.Step() {
	}
	select {
	case <-done:
		t.Fatal("done while an older view is open")
	default:
	}
	if kv, err := old.Get([]byte("k"), 3); err != nil || string(decode(t, kv).Value) != "1" {
		t.Errorf("old view at 3: %x, %v", kv, err)
	}
	v := s.View()
	if _, err := v.Get([]byte("k"), 3); err != ErrCompacted {
		t.Errorf("new view at 3: %v", err)
	}
	v.Close()
	old.Close()
	old.Close()
	for s.Step() {
	}
	if err := <-done; err != nil {
		t.Errorf("outcome: %v", err)
	}
	if n := records(t, s); n != 1 {
		t.Errorf("%d records are left, want 1", n)
	}
}

// No caller waits forever for a compaction that Close interrupts: one that waits for a
// view, one queued after it, and one that comes too late.
func TestCloseEndsCompactions(t *testing.T) {
	for _, manual := range []bool{false, true} {
		_, s := openMem(t, Options{Manual: manual})
		for range 5 {
			apply(t, s, func(t *Txn) { t.Put([]byte("k"), nil, 0) })
		}
		v := s.View()
		waiting := []<-chan error{compact(t, s, 3), compact(t, s, 4)}
		s.Close()
		waiting = append(waiting, compact(t, s, 5))
		for i, done := range waiting {
			if err := <-done; !errors.Is(err, engine.ErrClosed) {
				t.Errorf("manual %v, compaction %d: %v, want ErrClosed", manual, i, err)
			}
		}
		v.Close()
		s.Close()
	}
}

func records(t *testing.T, s *Store) (n int) {
	t.Helper()
	it, err := s.eng.NewIter(engine.Key.Bounds())
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	return n
}

// The goroutine is paced by the given clock, and returns when its work is done.
func TestCompactionInBackground(t *testing.T) {
	clk := clock.NewManual(time.Unix(0, 0))
	_, s := openMem(t, Options{Clock: clk, CompactionBatch: 10, CompactionPause: time.Second})
	for range 100 {
		apply(t, s, func(t *Txn) { t.Put([]byte("k"), nil, 0) })
	}
	done := compact(t, s, 101)
	wait := func(done <-chan error) {
		for {
			select {
			case <-done:
				return
			default:
				clk.Advance(time.Second)
			}
		}
	}
	wait(done)
	if n := records(t, s); n != 1 {
		t.Errorf("%d records are left, want 1", n)
	}
	apply(t, s, func(t *Txn) { t.Put([]byte("k"), nil, 0) })
	wait(compact(t, s, 102))
	if n := records(t, s); n != 1 {
		t.Errorf("%d records are left after the second, want 1", n)
	}
}

// behindEngine is behind until it is told that it is not.
type behindEngine struct {
	*mem.Engine
	behind atomic.Bool
	asked  chan struct{} // gets an element for each question, if it has room
}

func (e *behindEngine) Behind() bool {
	select {
	case e.asked <- struct{}{}:
	default:
	}
	return e.behind.Load()
}

// A compaction waits while the engine cannot keep up with what is written: writers would wait
// for its deletions.
func TestCompactionWaitsForEngine(t *testing.T) {
	clk := clock.NewManual(time.Unix(0, 0))
	eng := &behindEngine{Engine: mem.New(), asked: make(chan struct{}, 1)}
	eng.behind.Store(true)
	s, err := Open(eng, Options{Clock: clk, CompactionBatch: 10, CompactionPause: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 100 {
		apply(t, s, func(t *Txn) { t.Put([]byte("k"), nil, 0) })
	}
	before := records(t, s)
	done := compact(t, s, 101)
	for asked := 0; asked < 20; {
		select {
		case <-eng.asked:
			asked++
		case err := <-done:
			t.Fatalf("the compaction has ended: %v", err)
		default:
			clk.Advance(time.Second)
		}
	}
	if n := records(t, s); n != before {
		t.Errorf("%d of %d records are left while the engine is behind", n, before)
	}
	eng.behind.Store(false)
	for {
		select {
		case <-done:
			if n := records(t, s); n != 1 {
				t.Errorf("%d records are left, want 1", n)
			}
			return
		default:
			clk.Advance(time.Second)
		}
	}
}

// A Store that is closed during a compaction, and an engine that lost what was not
// flushed, resume where they were.
func TestCompactionResumes(t *testing.T) {
	eng, s := openMem(t, Options{Manual: true, CompactionBatch: 10})
	for i := range 100 {
		apply(t, s, func(t *Txn) { t.Put(fmt.Appendf(nil, "k%d", i%7), nil, 0) })
	}
	compact(t, s, 90)
	for range 13 {
		s.Step()
	}
	s.Close()
	if s.Step() {
		t.Error("a step after Close")
	}
	if n := records(t, s); n == 100 || n <= 18 {
		t.Fatalf("%d records: not in the middle", n)
	}
	if err := eng.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	s, err := Open(eng.Crash(), Options{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.CompactRev(); got != 90 {
		t.Errorf("compact revision %d", got)
	}
	for s.Step() {
	}
	if n := records(t, s); n != 11+7 {
		t.Errorf("%d records are left, want 18", n)
	}
	s.Close()
}

// A compaction that cannot write is abandoned, and the next start resumes it.
func TestCompactionFails(t *testing.T) {
	e := &brokenEngine{mem.New(), 1000}
	s, err := Open(e, Options{Manual: true, CompactionBatch: 3})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		apply(t, s, func(t *Txn) { t.Put([]byte("k"), nil, 0) })
	}
	done := compact(t, s, 21)
	e.left = 2
	for s.Step() {
	}
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("done, but it failed")
		}
	default:
		t.Fatal("nobody is told that it failed")
	}
	v := s.View()
	if kv, err := v.Get([]byte("k"), 0); err != nil || kv == nil {
		t.Errorf("Get: %x, %v", kv, err)
	}
	v.Close()
	s.Close()
	e.left = 1000
	if s, err = Open(e, Options{Manual: true}); err != nil {
		t.Fatal(err)
	}
	for s.Step() {
	}
	if n := records(t, s); n != 1 {
		t.Errorf("%d records are left, want 1", n)
	}
	s.Close()
}

// After restore --bump-revision --mark-compacted everything before the mark is compacted,
// keys stay readable, and the mark is not a key.
func TestMarkCompacted(t *testing.T) {
	eng, s := openMem(t, Options{Manual: true})
	for range 3 {
		apply(t, s, func(t *Txn) { t.Put([]byte("k"), []byte("v"), 0) })
	}
	s.Close()
	mark := AppendRevision(nil, Revision{Main: 1_000_004}, false)
	b := eng.NewBatch()
	b.Set(engine.Key.K(mark), nil)
	b.Set(engine.Meta.K([]byte("scheduledCompactRev")), mark)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(eng, Options{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	for s.Step() {
	}
	v := s.View()
	defer v.Close()
	if v.Rev() != 1_000_004 || v.CompactRev() != 1_000_004 {
		t.Errorf("revision %d, compacted %d", v.Rev(), v.CompactRev())
	}
	res, err := v.Range(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil || res.Count != 1 || decode(t, res.KVs[0]).ModRevision != 4 {
		t.Errorf("Range: %+v, %v", res, err)
	}
	if n := records(t, s); n != 2 {
		t.Errorf("%d records, want the key's and the mark", n)
	}
}
