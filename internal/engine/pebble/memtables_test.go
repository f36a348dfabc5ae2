package pebble

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"quorate/internal/clock"
	"quorate/internal/engine"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Only a flush in progress can be behind: without one, the memtable is simply not full yet.
func TestBehind(t *testing.T) {
	m := newMemtables(1000)
	m.add(900, 0)
	if m.behind() || m.flushing() {
		t.Error("behind without a flush")
	}
	m.flushBegun(pebble.FlushInfo{})
	m.add(0, 1000/2/recordBytes)
	if m.behind() || !m.flushing() {
		t.Error("behind with half a memtable")
	}
	m.add(0, 2)
	if !m.behind() {
		t.Error("not behind with more than half a memtable of records without bytes")
	}
	m.flushEnded(pebble.FlushInfo{Err: errors.New("failed")})
	if !m.behind() {
		t.Error("a flush that failed counts")
	}
	m.flushEnded(pebble.FlushInfo{})
	if m.behind() || m.flushing() || len(m.ended) != 1 {
		t.Error("behind after the flush")
	}
	if n := m.encoded.all.Load(); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
	// What this flush writes counted as written by the one before.
	if m.flushBegun(pebble.FlushInfo{}); !m.flushing() || m.behind() {
		t.Error("a flush of what is not counted is not in progress, or is behind")
	}
	if m.add(0, 1000/2/recordBytes+1); !m.behind() {
		t.Error("such a flush is not behind")
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
	m.add(10, 1) // as if another flush had written the batch before it was counted
	for range 2 {
		if err := e.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if m.flushing() || m.memory.all.Load() != 0 || m.encoded.all.Load() != 0 {
		t.Errorf("flushing %v, %d bytes of memory and %d bytes are left", m.flushing(), m.memory.all.Load(), m.encoded.all.Load())
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
