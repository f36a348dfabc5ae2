package pebble

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"quorate/internal/clock"
	"quorate/internal/engine"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// Only a flush in progress can be behind: without one, the memtable is simply not full yet. What
// it does not write stays counted.
func TestBehind(t *testing.T) {
	m := newMemtables(1000)
	begun := func(n uint64) { m.flushBegun(pebble.FlushInfo{InputBytes: n}) }
	commit := func(encoded, memory int64) {
		m.begin(amount{encoded: encoded, memory: memory})
		m.end(amount{encoded: encoded, memory: memory}, true)
	}
	commit(900, 900)
	if m.behind() || m.isFlushing() {
		t.Error("behind without a flush")
	}
	begun(900)
	commit(0, 500)
	if m.behind() || !m.isFlushing() {
		t.Error("behind with half a memtable")
	}
	m.begin(amount{encoded: 0, memory: 100})
	if !m.behind() {
		t.Error("not behind with more than half a memtable of records without bytes, one of them on its way")
	}
	m.flushEnded(pebble.FlushInfo{Err: errors.New("failed")})
	if !m.behind() {
		t.Error("a flush that failed counts")
	}
	m.flushEnded(pebble.FlushInfo{})
	if m.behind() || m.isFlushing() || len(m.ended) != 1 || m.inMemory() != 0 {
		t.Errorf("behind after the flush, or %d bytes are left", m.inMemory())
	}
	if begun(0); !m.isFlushing() || !m.behind() {
		t.Error("a flush that writes nothing of 600 bytes is not in progress, or not behind")
	}
	m.flushEnded(pebble.FlushInfo{Err: errors.New(emptyFlush)})
	m.end(amount{encoded: 0, memory: 100}, true)
	commit(800, 800)
	begun(700) // one of two
	m.flushEnded(pebble.FlushInfo{})
	if got := m.all; got != (amount{encoded: 400, memory: 700}) {
		t.Errorf("%v are left of two memtables after a flush of one", got)
	}
	begun(701) // as much as there is
	m.flushEnded(pebble.FlushInfo{})
	if m.all != (amount{}) {
		t.Errorf("%v are left", m.all)
	}
	// What is counted wrongly is forgotten as soon as everything is known to be written.
	commit(10, 10)
	before := m.committed()
	commit(20, 20)
	begun(5)
	m.flushEnded(pebble.FlushInfo{})
	refused := amount{encoded: 7, memory: 7}
	if m.begin(refused); m.all.memory != 32 {
		t.Errorf("%v with another batch", m.all)
	}
	if m.end(refused, false); m.all.memory != 25 {
		t.Errorf("%v after it was refused", m.all)
	}
	if m.written(before); m.all != (amount{encoded: 20, memory: 20}) {
		t.Errorf("%v are left", m.all)
	}
}

// What batches are said to need in a memtable is what they need.
func TestAmountOf(t *testing.T) {
	for _, records := range []struct{ each, key, value int }{{1, 18, 1000}, {1, 18, 300}, {100, 18, 200}, {3, 6, 8}, {1, 17, 20000}, {80_000, 18, 30}} {
		var input uint64
		m := newMemtables(16 << 20)
		db, err := pebble.Open("db", &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, MemTableSize: 16 << 20,
			EventListener: &pebble.EventListener{FlushBegin: func(i pebble.FlushInfo) { input += i.InputBytes }}})
		if err != nil {
			t.Fatal(err)
		}
		var sum amount
		for n := 0; sum.memory < 24<<20; {
			b := db.NewBatch()
			for range records.each {
				k := make([]byte, records.key)
				binary.BigEndian.PutUint32(k, uint32(n))
				n++
				if err := b.Set(k, make([]byte, records.value), nil); err != nil {
					t.Fatal(err)
				}
			}
			sum = sum.plus(m.amountOf(int64(b.Len()), int64(b.Count())))
			if err := b.Commit(pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v: %.4f of what they are said to need", records, float64(input)/float64(sum.memory))
		if off := math.Abs(float64(input)/float64(sum.memory) - 1); off > 0.02 {
			t.Errorf("%+v need %d bytes, said to be %d", records, input, sum.memory)
		}
	}
}

// gatedFS lets no table be created until gate is closed.
type gatedFS struct {
	*fullFS
	gate chan struct{}
}

func (f *gatedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") {
		<-f.gate
	}
	return f.fullFS.Create(name, c)
}

// The size counts what is in a memtable that is not full, although a flush of others has ended.
func TestSizeWithQueuedMemtables(t *testing.T) {
	fs := &gatedFS{&fullFS{FS: vfs.NewMem()}, make(chan struct{})}
	e := open1(t, "db", Options{FS: fs, MemTableBytes: 1 << 20})
	m := &e.(*store).mem
	bytes := int64(0)
	for i := 0; m.committed().memory < 28<<17; i++ { // with 3.75 MiB in memory, writers wait
		b := e.NewBatch()
		b.Set(key(i), value(i))
		bytes += int64(b.Len())
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if m.mu.Lock(); !m.active || m.flushing.memory > 2<<20 {
		t.Fatalf("a flush of %d bytes is in progress (%v) of %d", m.flushing.memory, m.active, m.all.memory)
	}
	m.mu.Unlock()
	close(fs.gate)
	for m.inMemory() > 1<<20 {
		<-m.ended
	}
	if got := e.Size().Total; got < bytes*9/10 || got > bytes*11/10 {
		t.Errorf("%d bytes were committed, the size is %d", bytes, got)
	}
	if err := e.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := e.Size().Total; m.inMemory() != 0 || got < bytes*9/10 || got > bytes*11/10 {
		t.Errorf("%d bytes were committed, the size is %d after a flush, %d of them in memory", bytes, got, m.inMemory())
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// A large batch takes a memtable away although it needs little of it: behind it, commits may
// wait.
func TestBehindLargeBatch(t *testing.T) {
	m := newMemtables(16 << 20)
	large := m.amountOf(2<<20, 40_000)
	if !large.large || m.amountOf(4<<20, 10).large {
		t.Fatal("it is the memory that Pebble reserves that makes a batch large")
	}
	m.flushBegun(pebble.FlushInfo{})
	if m.begin(large); !m.behind() {
		t.Error("not behind")
	}
	if m.flushBegun(pebble.FlushInfo{}); m.behind() {
		t.Error("behind a batch that is being written")
	}
	if m.end(large, true); !m.behind() {
		t.Error("the flush may not have it")
	}
}

// The size does not count twice what a flush moves to the disk.
func TestSizeBesideFlush(t *testing.T) {
	fs := &manifestFS{FS: vfs.NewMem(), syncs: make(chan struct{}, 1), gate: make(chan struct{})}
	e := open1(t, "db", Options{FS: fs})
	fill(t, e, 10_000)
	before := e.Size().Total
	fs.on.Store(true)
	flushed := make(chan error, 1)
	go func() { flushed <- e.Flush(context.Background()) }()
	<-fs.syncs
	s := e.(*store)
	s.stale.Store(true) // as the end of a compaction does
	size := make(chan int64, 1)
	go func() { size <- e.Size().Total }()
	for s.sizeMu.Lock(); s.measuring == nil; s.sizeMu.Lock() {
		s.sizeMu.Unlock()
		runtime.Gosched()
	}
	s.sizeMu.Unlock()
	close(fs.gate)
	if got := <-size; got > before*5/4 {
		t.Errorf("%d bytes beside a flush, %d before", got, before)
	}
	if err := <-flushed; err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// manifestFS lets no sync of a manifest end until gate is closed.
type manifestFS struct {
	vfs.FS
	on    atomic.Bool
	syncs chan struct{}
	gate  chan struct{}
}

func (f *manifestFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err == nil && strings.Contains(name, "MANIFEST") {
		file = &manifestFile{file, f}
	}
	return file, err
}

type manifestFile struct {
	vfs.File
	fs *manifestFS
}

func (f *manifestFile) Sync() error {
	if f.fs.on.Load() {
		select {
		case f.fs.syncs <- struct{}{}:
		default:
		}
		<-f.fs.gate
	}
	return f.File.Sync()
}

func (f *manifestFile) SyncData() error { return f.Sync() }

// A writer that waits inside Pebble when the disk becomes full can be told to give up.
func TestGiveUpInside(t *testing.T) {
	fs := &gatedFS{&fullFS{FS: vfs.NewMem()}, make(chan struct{})}
	giveUp := make(chan struct{})
	core, logs := observer.New(zap.WarnLevel)
	waits := make(chan struct{}, 10)
	lg := zap.New(core, zap.Hooks(func(e zapcore.Entry) error {
		if strings.Contains(e.Message, ": writes wait") {
			waits <- struct{}{}
		}
		return nil
	}))
	full := make(chan bool, 10)
	e := open1(t, "db", Options{FS: fs, MemTableBytes: 64 << 10, GiveUp: giveUp, Logger: lg, OnSpace: func(lack error) { full <- lack != nil }})
	done := make(chan error)
	last := 0
	go func() {
		for i := 0; ; i++ {
			b := e.NewBatch()
			b.Set(key(i), value(i))
			if err := b.Commit(); err != nil {
				last = i
				b.Discard() // which must not take it away from Pebble
				done <- err
				return
			}
		}
	}()
	<-waits // inside
	fs.full.Store(true)
	close(fs.gate)
	<-full
	select {
	case err := <-done:
		t.Errorf("Commit returned %v on a full disk", err)
	default:
	}
	close(giveUp)
	select {
	case err := <-done:
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Commit: %v, want ENOSPC", err)
		}
	case <-clock.After(30 * time.Second):
		t.Fatal("Commit does not return")
	}
	e.Size()                  // returns
	var others []engine.Batch // which Pebble makes of what it was given back
	for i := range 20 {
		b := e.NewBatch()
		b.Set(key(1<<20+i), value(i))
		others = append(others, b)
	}
	fs.full.Store(false)
	for e.(*store).uses.Load() > 0 {
		runtime.Gosched()
	}
	if v, err := e.Get(nil, key(last)); err != nil || string(v) != string(value(last)) {
		t.Errorf("the batch that Pebble had: %d bytes, %v", len(v), err)
	}
	for i, b := range others {
		if v, err := e.Get(nil, key(1<<20+i)); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("a batch that was not committed: %d bytes, %v", len(v), err)
		}
		b.Discard()
	}
	if err := e.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Close: %v", err)
	}
	if logs.Len() == 0 {
		t.Error("nobody is told that writes wait")
	}
}

// A flush that finds nothing to write ends like any other, although Pebble reports an error:
// the next flush does not wait for it.
func TestEmptyFlush(t *testing.T) {
	e := open1(t, "db", Options{FS: vfs.NewMem()})
	defer e.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m := &e.(*store).mem
	m.begin(amount{encoded: 10, memory: 10}) // as if it were counted wrongly
	m.end(amount{encoded: 10, memory: 10}, true)
	for range 2 {
		if err := e.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if m.isFlushing() || m.all != (amount{}) {
		t.Errorf("flushing %v, %v are left", m.isFlushing(), m.all)
	}
}

// Under load, where one flush follows another, a flush waits for the one in progress and does not
// wait until there is none.
func TestFlushAmongFlushes(t *testing.T) {
	e := open1(t, "db", Options{FS: vfs.NewMem()})
	defer e.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	fill(t, e, 1)
	m := &e.(*store).mem
	m.flushBegun(pebble.FlushInfo{})
	flushed := make(chan error, 1)
	go func() { flushed <- e.Flush(ctx) }()
	for range 2 { // those that end, while the next ones have begun
		select {
		case m.ended <- struct{}{}:
		case <-ctx.Done():
		}
	}
	if err := <-flushed; err != nil {
		t.Error(err)
	}
}

// A flush waits for one in progress instead of making Pebble stop all writers.
func TestFlushBehindFlush(t *testing.T) {
	const size = 1 << 20
	fs := &fullFS{FS: vfs.NewMem()}
	begun := make(chan struct{}, 1)
	e := open1(t, "db", Options{FS: fs, MemTableBytes: size, OnBackgroundError: func(error) {
		select {
		case begun <- struct{}{}:
		default:
		}
	}})
	defer e.Close()
	fill(t, e, 500)
	fs.full.Store(true) // the flush that begins now does not end
	const flushes = 50
	flushed := make(chan error, flushes)
	flush := func() { flushed <- e.Flush(context.Background()) }
	go flush()
	<-begun
	committed := make(chan struct{})
	go func() {
		defer close(committed)
		for range flushes - 1 {
			b := e.NewBatch()
			b.Set([]byte{byte(engine.Key), 1}, []byte("v"))
			if err := b.Commit(); err != nil {
				t.Error(err)
			}
			go flush()
			runtime.Gosched()
		}
	}()
	select {
	case <-committed:
	case <-clock.After(time.Minute):
		t.Error("a write waits for flushes that wait for a flush")
	}
	fs.full.Store(false)
	for range flushes {
		if err := <-flushed; err != nil {
			t.Error(err)
		}
	}
}
