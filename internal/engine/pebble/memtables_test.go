package pebble

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"strings"
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
		m.begin(amount{encoded, memory})
		m.end(amount{encoded, memory})
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
	m.begin(amount{0, 100})
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
	m.end(amount{0, 100})
	commit(800, 800)
	begun(700) // one of two
	m.flushEnded(pebble.FlushInfo{})
	if got := m.all; got != (amount{400, 700}) {
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
	if m.written(before); m.all != (amount{20, 20}) {
		t.Errorf("%v are left", m.all)
	}
}

// What batches are said to need in a memtable is what they need.
func TestAmountOf(t *testing.T) {
	for _, records := range []struct{ each, key, value int }{{1, 18, 1000}, {1, 18, 300}, {100, 18, 200}, {3, 6, 8}, {1, 17, 20000}} {
		var input uint64
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
			sum = sum.plus(amountOf(int64(b.Len()), int64(b.Count())))
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
	e := open1(t, "db", Options{FS: fs, MemTableBytes: 64 << 10, GiveUp: giveUp, Logger: lg, OnSpace: func(is bool) { full <- is }})
	done := make(chan error)
	go func() {
		for i := 0; ; i++ {
			b := e.NewBatch()
			b.Set(key(i), value(i))
			if err := b.Commit(); err != nil {
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
	e.Size() // returns
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
	m.begin(amount{10, 10}) // as if it were counted wrongly
	m.end(amount{10, 10})
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
