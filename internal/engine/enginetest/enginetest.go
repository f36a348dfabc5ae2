// Package enginetest is the contract of package engine as a test suite.
//
// In: a function that creates an empty engine with its ways to crash and reopen.
// Out: failures of t. Always true: every implementation runs it.
package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sort"
	"sync"
	"testing"

	"quorate/internal/engine"
)

// Subject is an engine under test.
type Subject struct {
	Engine engine.Engine
	// Crash returns a new subject with what a power loss at this moment leaves.
	// The old engine must not be used afterwards.
	Crash func(t *testing.T) *Subject
	// OpenCheckpoint opens what Checkpoint(dir) wrote.
	OpenCheckpoint func(t *testing.T, dir string) engine.Engine
	// Dir returns the name of a directory that does not exist.
	Dir func(name string) string
}

// Run runs the suite; fresh creates an empty engine, which the suite closes.
func Run(t *testing.T, fresh func(t *testing.T) *Subject) {
	tests := []struct {
		name string
		run  func(t *testing.T, s *Subject)
	}{
		{"GetSetDelete", testGetSetDelete},
		{"BatchIsAtomicAndOrdered", testBatchOrder},
		{"Discard", testDiscard},
		{"CopiesArguments", testCopies},
		{"Iterator", testIterator},
		{"IteratorKeepsItsState", testIteratorState},
		{"Snapshot", testSnapshot},
		{"DeleteRange", testDeleteRange},
		{"Model", testModel},
		{"CrashLeavesAPrefix", testCrash},
		{"Checkpoint", testCheckpoint},
		{"Concurrency", testConcurrency},
		{"Size", testSize},
		{"Closed", testClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := fresh(t)
			tt.run(t, s)
			if err := s.Engine.Close(); err != nil && !errors.Is(err, engine.ErrClosed) {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// commit writes key=value pairs; a value of "-" deletes.
func commit(t *testing.T, e engine.Engine, pairs ...string) {
	t.Helper()
	b := e.NewBatch()
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "-" {
			b.Delete([]byte(pairs[i]))
		} else {
			b.Set([]byte(pairs[i]), []byte(pairs[i+1]))
		}
	}
	must(t, b.Commit())
}

func wantGet(t *testing.T, r engine.Reader, key, want string) {
	t.Helper()
	got, err := r.Get([]byte("dst:"), []byte(key))
	if want == "-" {
		if !errors.Is(err, engine.ErrNotFound) {
			t.Fatalf("Get(%q) = %q, %v; want ErrNotFound", key, got, err)
		}
		return
	}
	if err != nil || string(got) != "dst:"+want {
		t.Fatalf("Get(%q) = %q, %v; want dst:%s", key, got, err, want)
	}
}

// dump lists the contents of [lower, upper) as "k=v ".
func dump(t *testing.T, r engine.Reader, lower, upper []byte) string {
	t.Helper()
	it, err := r.NewIter(lower, upper)
	must(t, err)
	defer func() { must(t, it.Close()) }()
	var out bytes.Buffer
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		must(t, err)
		fmt.Fprintf(&out, "%s=%s ", it.Key(), v)
	}
	must(t, it.Error())
	return out.String()
}

func testGetSetDelete(t *testing.T, s *Subject) {
	e := s.Engine
	wantGet(t, e, "a", "-")
	commit(t, e, "a", "1", "b", "", "c", "3")
	wantGet(t, e, "a", "1")
	wantGet(t, e, "b", "")
	wantGet(t, e, "ab", "-")
	commit(t, e, "a", "2", "c", "-", "never", "-")
	wantGet(t, e, "a", "2")
	wantGet(t, e, "c", "-")
	must(t, e.Flush(context.Background()))
	wantGet(t, e, "a", "2")
	wantGet(t, e, "c", "-")
	must(t, e.Compact(context.Background()))
	if got := dump(t, e, nil, nil); got != "a=2 b= " {
		t.Errorf("contents %q", got)
	}
}

func testBatchOrder(t *testing.T, s *Subject) {
	e := s.Engine
	commit(t, e, "x", "0", "y", "0")
	b := e.NewBatch()
	empty := b.Len()
	b.Set([]byte("a"), []byte("1"))
	b.Set([]byte("a"), []byte("2"))
	b.DeleteRange([]byte("a"), []byte("z"))
	b.Set([]byte("b"), []byte("3"))
	b.Delete([]byte("b"))
	b.Set([]byte("c"), []byte("4"))
	if b.Len() <= empty {
		t.Errorf("Len: %d after writes, %d before", b.Len(), empty)
	}
	if got := dump(t, e, nil, nil); got != "x=0 y=0 " {
		t.Fatalf("before commit: %q", got)
	}
	must(t, b.Commit())
	if got := dump(t, e, nil, nil); got != "c=4 " {
		t.Errorf("contents %q, want c=4", got)
	}
}

func testDiscard(t *testing.T, s *Subject) {
	b := s.Engine.NewBatch()
	b.Set([]byte("a"), []byte("1"))
	b.Discard()
	wantGet(t, s.Engine, "a", "-")
}

func testCopies(t *testing.T, s *Subject) {
	k, v := []byte("key"), []byte("value")
	b := s.Engine.NewBatch()
	b.Set(k, v)
	k[0], v[0] = 'x', 'x'
	must(t, b.Commit())
	wantGet(t, s.Engine, "key", "value")
	got, err := s.Engine.Get(nil, []byte("key"))
	must(t, err)
	got[0] = 'x'
	wantGet(t, s.Engine, "key", "value")
}

func testIterator(t *testing.T, s *Subject) {
	e := s.Engine
	commit(t, e, "b", "1", "d", "2", "f", "3")
	must(t, e.Flush(context.Background())) // half on disk, half in memory
	commit(t, e, "c", "4", "d", "5", "h", "6")
	for _, tt := range []struct {
		lower, upper []byte
		want         string
	}{
		{nil, nil, "b=1 c=4 d=5 f=3 h=6 "},
		{[]byte("c"), nil, "c=4 d=5 f=3 h=6 "},
		{nil, []byte("f"), "b=1 c=4 d=5 "},
		{[]byte("c"), []byte("f"), "c=4 d=5 "},
		{[]byte("g"), []byte("h"), ""},
		{[]byte("f"), []byte("c"), ""},
	} {
		if got := dump(t, e, tt.lower, tt.upper); got != tt.want {
			t.Errorf("[%s, %s): %q, want %q", tt.lower, tt.upper, got, tt.want)
		}
	}
	it, err := e.NewIter([]byte("c"), []byte("h"))
	must(t, err)
	defer func() { must(t, it.Close()) }()
	if it.Valid() {
		t.Error("valid before it is positioned")
	}
	for _, step := range []struct {
		name string
		move func() bool
		want string // "": the iterator must be invalid
	}{
		{"Last", it.Last, "f"},
		{"Prev", it.Prev, "d"},
		{"Prev", it.Prev, "c"},
		{"Prev to the lower bound", it.Prev, ""},
		{"SeekGE a", func() bool { return it.SeekGE([]byte("a")) }, "c"},
		{"SeekGE e", func() bool { return it.SeekGE([]byte("e")) }, "f"},
		{"Next", it.Next, ""},
		{"SeekGE d", func() bool { return it.SeekGE([]byte("d")) }, "d"},
		{"Next", it.Next, "f"},
		{"SeekGE h", func() bool { return it.SeekGE([]byte("h")) }, ""},
		{"First", it.First, "c"},
	} {
		got := ""
		if step.move() {
			got = string(it.Key())
		}
		if got != step.want || it.Valid() != (step.want != "") {
			t.Fatalf("%s: at %q, valid %v; want %q", step.name, got, it.Valid(), step.want)
		}
	}
}

func testIteratorState(t *testing.T, s *Subject) {
	e := s.Engine
	commit(t, e, "a", "1", "b", "2")
	it, err := e.NewIter(nil, nil)
	must(t, err)
	commit(t, e, "a", "-", "b", "3", "c", "4")
	must(t, e.Flush(context.Background()))
	var got string
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		must(t, err)
		got += string(it.Key()) + "=" + string(v) + " "
	}
	must(t, it.Close())
	if got != "a=1 b=2 " {
		t.Errorf("iterator saw %q, want the state of its creation", got)
	}
}

func testSnapshot(t *testing.T, s *Subject) {
	e := s.Engine
	commit(t, e, "a", "1", "b", "2")
	snap := e.NewSnapshot()
	commit(t, e, "a", "9", "b", "-", "c", "3")
	must(t, e.Flush(context.Background()))
	must(t, e.Compact(context.Background()))
	wantGet(t, snap, "a", "1")
	wantGet(t, snap, "c", "-")
	if got := dump(t, snap, nil, nil); got != "a=1 b=2 " {
		t.Errorf("snapshot %q", got)
	}
	must(t, snap.Close())
	if _, err := snap.Get(nil, []byte("a")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Get of a closed snapshot: %v", err)
	}
	if got := dump(t, e, nil, nil); got != "a=9 c=3 " {
		t.Errorf("engine %q", got)
	}
}

func testDeleteRange(t *testing.T, s *Subject) {
	e := s.Engine
	commit(t, e, "a", "1", "b", "2", "c", "3", "d", "4")
	must(t, e.Flush(context.Background()))
	b := e.NewBatch()
	b.DeleteRange([]byte("b"), []byte("d"))
	b.DeleteRange([]byte("z"), []byte("a")) // empty range
	must(t, b.Commit())
	if got := dump(t, e, nil, nil); got != "a=1 d=4 " {
		t.Errorf("contents %q", got)
	}
	wantGet(t, e, "b", "-")
	commit(t, e, "c", "5")
	must(t, e.Flush(context.Background()))
	if got := dump(t, e, nil, nil); got != "a=1 c=5 d=4 " {
		t.Errorf("contents %q", got)
	}
}

// change is one random batch, applied to an engine and to a map.
type change []func(b engine.Batch, m map[string]string)

func randomChange(r *rand.Rand) (c change) {
	key := func() string { return fmt.Sprintf("k%03d", r.Intn(200)) }
	for range 1 + r.Intn(8) {
		switch k, v := key(), fmt.Sprint(r.Int63()); r.Intn(10) {
		case 0:
			hi := key()
			c = append(c, func(b engine.Batch, m map[string]string) {
				b.DeleteRange([]byte(k), []byte(hi))
				for x := range m {
					if x >= k && x < hi {
						delete(m, x)
					}
				}
			})
		case 1, 2, 3:
			c = append(c, func(b engine.Batch, m map[string]string) {
				b.Delete([]byte(k))
				delete(m, k)
			})
		default:
			c = append(c, func(b engine.Batch, m map[string]string) {
				b.Set([]byte(k), []byte(v))
				m[k] = v
			})
		}
	}
	return c
}

func render(m map[string]string) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var out bytes.Buffer
	for _, k := range keys {
		fmt.Fprintf(&out, "%s=%s ", k, m[k])
	}
	return out.String()
}

func testModel(t *testing.T, s *Subject) {
	r := rand.New(rand.NewSource(1))
	m := map[string]string{}
	for i := range 300 {
		b := s.Engine.NewBatch()
		for _, f := range randomChange(r) {
			f(b, m)
		}
		must(t, b.Commit())
		if r.Intn(20) == 0 {
			must(t, s.Engine.Flush(context.Background()))
		}
		k := fmt.Sprintf("k%03d", r.Intn(200))
		if v, ok := m[k]; ok {
			wantGet(t, s.Engine, k, v)
		} else {
			wantGet(t, s.Engine, k, "-")
		}
		if i%10 == 0 {
			if got, want := dump(t, s.Engine, nil, nil), render(m); got != want {
				t.Fatalf("after batch %d:\n%s\nwant\n%s", i, got, want)
			}
		}
	}
}

// testCrash crashes repeatedly; the recovered state must be the state after one of
// the batches since the last Flush.
func testCrash(t *testing.T, s *Subject) {
	r := rand.New(rand.NewSource(2))
	m := map[string]string{}
	for round := range 8 {
		states := []string{render(m)} // after each batch since the last flush
		maps := []map[string]string{clone(m)}
		for range r.Intn(60) {
			b := s.Engine.NewBatch()
			for _, f := range randomChange(r) {
				f(b, m)
			}
			must(t, b.Commit())
			states, maps = append(states, render(m)), append(maps, clone(m))
			if r.Intn(25) == 0 {
				must(t, s.Engine.Flush(context.Background()))
				states, maps = states[len(states)-1:], maps[len(maps)-1:]
			}
		}
		*s = *s.Crash(t)
		got, found := dump(t, s.Engine, nil, nil), -1
		for i, want := range states {
			if got == want {
				found = i
			}
		}
		if found < 0 {
			t.Fatalf("round %d: after the crash\n%s\nis none of the %d states since the last flush", round, got, len(states))
		}
		m = maps[found]
	}
}

func clone(m map[string]string) map[string]string {
	c := map[string]string{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

func testCheckpoint(t *testing.T, s *Subject) {
	commit(t, s.Engine, "a", "1", "b", "2")
	dir := s.Dir("copy")
	must(t, s.Engine.Checkpoint(dir))
	commit(t, s.Engine, "a", "9", "c", "3")
	must(t, s.Engine.Flush(context.Background()))
	if err := s.Engine.Checkpoint(dir); err == nil {
		t.Error("Checkpoint into a directory that exists: no error")
	}
	c := s.OpenCheckpoint(t, dir)
	if got := dump(t, c, nil, nil); got != "a=1 b=2 " {
		t.Errorf("checkpoint holds %q", got)
	}
	must(t, c.Close())
	if got := dump(t, s.Engine, nil, nil); got != "a=9 b=2 c=3 " {
		t.Errorf("engine holds %q", got)
	}
}

// testConcurrency: a reader sees each batch atomically, while two goroutines commit
// and flush.
func testConcurrency(t *testing.T, s *Subject) {
	e := s.Engine
	commit(t, e, "a0", "0", "a1", "0", "b0", "0", "b1", "0")
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for _, p := range []string{"a", "b"} {
		writers.Go(func() {
			for i := range 300 {
				b := e.NewBatch()
				b.Set([]byte(p+"0"), []byte(fmt.Sprint(i)))
				b.Set([]byte(p+"1"), []byte(fmt.Sprint(i)))
				if err := b.Commit(); err != nil {
					t.Errorf("Commit: %v", err)
				}
				if i%100 == 50 {
					if err := e.Flush(context.Background()); err != nil {
						t.Errorf("Flush: %v", err)
					}
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				snap := e.NewSnapshot()
				for _, p := range []string{"a", "b"} {
					x, err1 := snap.Get(nil, []byte(p+"0"))
					y, err2 := snap.Get(nil, []byte(p+"1"))
					if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
						t.Errorf("%s: half a batch: %q %v, %q %v", p, x, err1, y, err2)
					}
				}
				if err := snap.Close(); err != nil {
					t.Errorf("Close of a snapshot: %v", err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	wantGet(t, e, "a1", "299")
	wantGet(t, e, "b0", "299")
}

func testSize(t *testing.T, s *Subject) {
	r := rand.New(rand.NewSource(3))
	before := s.Engine.Size()
	value := make([]byte, 4096)
	for i := range 500 {
		r.Read(value)
		commit(t, s.Engine, fmt.Sprintf("%04d", i), string(value))
	}
	must(t, s.Engine.Flush(context.Background()))
	got := s.Engine.Size()
	if got.Total < before.Total+1<<20 || got.InUse < 1<<20 || got.InUse > got.Total {
		t.Errorf("Size after 2 MB: %+v, before %+v", got, before)
	}

	// Immediately, even while an iterator still reads what was replaced.
	it, err := s.Engine.NewIter(nil, nil)
	must(t, err)
	defer it.Close()
	it.First()
	b := s.Engine.NewBatch()
	b.DeleteRange([]byte("0100"), []byte("0500"))
	must(t, b.Commit())
	must(t, s.Engine.Compact(t.Context()))
	if full := got; s.Engine.Size().Total > full.Total-1<<20 {
		t.Errorf("Size after 1.6 MB were deleted and the rest compacted: %+v, before %+v", s.Engine.Size(), full)
	}
}

func testClosed(t *testing.T, s *Subject) {
	e := s.Engine
	commit(t, e, "a", "1")
	b := e.NewBatch()
	b.Set([]byte("b"), []byte("2"))
	must(t, e.Close())
	if _, err := e.Get(nil, []byte("a")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Get: %v", err)
	}
	if _, err := e.NewIter(nil, nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("NewIter: %v", err)
	}
	if err := b.Commit(); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
	if err := e.Flush(context.Background()); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Flush: %v", err)
	}
	if err := e.Compact(context.Background()); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Compact: %v", err)
	}
	if err := e.Checkpoint(s.Dir("late")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Checkpoint: %v", err)
	}
	if err := e.Close(); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

// Records lists a bucket: each key, without the bucket byte, followed by its value.
func Records(r engine.Reader, bucket engine.Bucket) (out []string, err error) {
	it, err := r.NewIter(bucket.Bounds())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			return nil, err
		}
		out = append(out, string(it.Key()[1:]), string(v))
	}
	return out, it.Error()
}
