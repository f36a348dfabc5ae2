package mvcc

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand"
	"runtime"
	"syscall"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/engine/pebble"
)

// cpu reports the processor time per operation, including garbage collection and
// flushes: the relevant figure on a shared machine.
func cpu(b *testing.B) (report func()) {
	b.Helper()
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

func benchKey(buf []byte, i int) []byte {
	return fmt.Appendf(buf[:0], "/registry/bench/%016d", uint64(i)*0x9e3779b97f4a7c15%1e16) // 32 bytes, in random order
}

// benchStore fills a store with n keys of 32 bytes and values of 256.
func benchStore(b *testing.B, eng engine.Engine, n int) *Store {
	b.Helper()
	s, err := Open(eng, Options{})
	if err != nil {
		b.Fatal(err)
	}
	benchFill(b, s, 0, n, 100)
	if err := eng.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
	return s
}

// benchFill puts keys [from, to) with group transactions per batch.
func benchFill(b *testing.B, s *Store, from, to, group int) {
	b.Helper()
	var key []byte
	value := make([]byte, 256)
	rand.New(rand.NewSource(1)).Read(value)
	for i := from; i < to; {
		batch := s.eng.NewBatch()
		for end := min(i+group, to); i < end; i++ {
			binary.BigEndian.PutUint64(value, uint64(i))
			t := s.Begin(batch)
			key = benchKey(key, i)
			t.Put(key, value, 0)
			t.End()
		}
		batch.Set(engine.Meta.K([]byte("consistent_index")), value[:8])
		if err := batch.Commit(); err != nil {
			b.Fatal(err)
		}
		s.Publish()
	}
}

func benchPebble(b *testing.B, dir string) engine.Engine {
	b.Helper()
	eng, err := pebble.Open(dir, pebble.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { eng.Close() })
	return eng
}

// BenchmarkPut overwrites random keys of 100k, in batches of several sizes: the whole
// apply path below the decoding of the entry.
func BenchmarkPut(b *testing.B) {
	for _, group := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("batch=%d", group), func(b *testing.B) {
			s := benchStore(b, benchPebble(b, b.TempDir()), 100_000)
			defer s.Close()
			value := make([]byte, 256)
			r := rand.New(rand.NewSource(1))
			var key []byte
			b.ReportAllocs()
			b.ResetTimer()
			defer cpu(b)()
			for n := 0; n < b.N; {
				batch := s.eng.NewBatch()
				for end := min(n+group, b.N); n < end; n++ {
					key = benchKey(key, r.Intn(100_000))
					t := s.Begin(batch)
					t.Put(key, value, 0)
					t.End()
				}
				if err := batch.Commit(); err != nil {
					b.Fatal(err)
				}
				s.Publish()
			}
		})
	}
}

// nullEngine discards batches: what remains is the cost of this package.
type nullEngine struct{ engine.Engine }

type nullBatch struct{ engine.Batch }

func (nullEngine) NewBatch() engine.Batch        { return nullBatch{} }
func (nullBatch) Set([]byte, []byte)             {}
func (nullBatch) Delete([]byte)                  {}
func (nullBatch) Commit() error                  { return nil }
func (nullBatch) DeleteRange([]byte, []byte)     {}
func (n nullEngine) Flush(context.Context) error { return nil }

func BenchmarkPutIndexOnly(b *testing.B) {
	for _, group := range []int{1, 100} {
		b.Run(fmt.Sprintf("batch=%d", group), func(b *testing.B) {
			s := benchStore(b, nullEngine{mem.New()}, 1_000_000)
			defer s.Close()
			value := make([]byte, 256)
			r := rand.New(rand.NewSource(1))
			var key []byte
			b.ReportAllocs()
			b.ResetTimer()
			defer cpu(b)()
			for n := 0; n < b.N; {
				batch := s.eng.NewBatch()
				for end := min(n+group, b.N); n < end; n++ {
					key = benchKey(key, r.Intn(1_000_000))
					t := s.Begin(batch)
					t.Put(key, value, 0)
					t.End()
				}
				s.Publish()
			}
		})
	}
}

func BenchmarkRange(b *testing.B) {
	s := benchStore(b, benchPebble(b, b.TempDir()), 300_000)
	defer s.Close()
	all := pb.RangeRequest{Key: []byte("/registry/"), RangeEnd: []byte("/registry0")}
	for _, bb := range []struct {
		name string
		mod  func(r *pb.RangeRequest)
	}{
		{"limit=10", func(r *pb.RangeRequest) { r.Limit = 10 }},
		{"limit=500", func(r *pb.RangeRequest) { r.Limit = 500 }},
		{"limit=500 keys only", func(r *pb.RangeRequest) { r.Limit, r.KeysOnly = 500, true }},
		{"count", func(r *pb.RangeRequest) { r.CountOnly = true }},
		{"all", func(r *pb.RangeRequest) {}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			req := &pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd}
			bb.mod(req)
			var key []byte
			b.ReportAllocs()
			defer cpu(b)()
			for i := 0; b.Loop(); i++ {
				if req.Limit > 0 {
					key = benchKey(key, i%300_000)
					req.Key = key
				}
				v := s.View()
				if _, err := v.Range(req); err != nil {
					b.Fatal(err)
				}
				v.Close()
			}
		})
	}
	b.Run("single key", func(b *testing.B) {
		var key []byte
		b.ReportAllocs()
		defer cpu(b)()
		for i := 0; b.Loop(); i++ {
			key = benchKey(key, i%300_000)
			v := s.View()
			if kv, err := v.Get(key, 0); err != nil || kv == nil {
				b.Fatal(err)
			}
			v.Close()
		}
	})
	benchList(b, s)
	// A page at an older revision after a tenth of the keys has changed: with
	// the root of that revision pinned, and without.
	rev := s.Rev()
	v := s.View()
	if _, err := v.Range(&pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd, Limit: 1}); err != nil {
		b.Fatal(err)
	}
	v.Close()
	benchFill(b, s, 0, 30_000, 100)
	for _, pinned := range []bool{true, false} {
		if !pinned {
			s.pins.list = nil
		}
		b.Run(fmt.Sprintf("old page limit=10 pinned=%v", pinned), func(b *testing.B) {
			var key []byte
			defer cpu(b)()
			for i := 0; b.Loop(); i++ {
				key = benchKey(key, i%300_000)
				v := s.View()
				if _, err := v.Range(&pb.RangeRequest{Key: key, RangeEnd: all.RangeEnd, Limit: 10, Revision: int64(rev)}); err != nil {
					b.Fatal(err)
				}
				v.Close()
			}
		})
	}
}

func benchList(b *testing.B, s *Store) {
	b.Run("list all", func(b *testing.B) {
		b.ReportAllocs()
		defer cpu(b)()
		for b.Loop() {
			l, err := s.List(&pb.RangeRequest{Key: []byte("/registry/"), RangeEnd: []byte("/registry0")})
			if err != nil || l.Keys != 300_000 {
				b.Fatal(l, err)
			}
			for last := false; !last; {
				if _, last, err = l.Next(); err != nil {
					b.Fatal(err)
				}
			}
			l.Close()
		}
	})
}

// BenchmarkOpen opens a store of a million keys and reports the memory that its index
// retains.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	eng, err := pebble.Open(dir, pebble.Options{})
	if err != nil {
		b.Fatal(err)
	}
	benchStore(b, eng, 1_000_000).Close()
	if err := eng.Close(); err != nil {
		b.Fatal(err)
	}
	eng = benchPebble(b, dir)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for b.Loop() {
		s, err := Open(eng, Options{})
		if err != nil {
			b.Fatal(err)
		}
		if s.Rev() != 1_000_001 {
			b.Fatal(s.Rev())
		}
		b.StopTimer()
		b.ReportMetric(float64(heap()-before)/1e6, "MB-index")
		s.Close()
		runtime.KeepAlive(s)
		b.StartTimer()
	}
}

// BenchmarkCompact overwrites each of 100k keys ten times and compacts.
func BenchmarkCompact(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		eng := benchPebble(b, b.TempDir())
		s := benchStore(b, eng, 100_000)
		for range 10 {
			benchFill(b, s, 0, 100_000, 100)
		}
		b.StartTimer()
		batch := eng.NewBatch()
		done, err := s.Compact(batch, s.Rev())
		if err != nil {
			b.Fatal(err)
		}
		if err := batch.Commit(); err != nil {
			b.Fatal(err)
		}
		s.Publish()
		<-done
		b.ReportMetric(1_000_000, "records")
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}
