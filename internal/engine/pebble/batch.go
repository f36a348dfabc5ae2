package pebble

import (
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/engine"
)

type snapshot struct {
	s    *store
	snap *pebble.Snapshot // nil once closed
}

func (n *snapshot) Get(dst, key []byte) ([]byte, error) {
	if n.snap == nil || n.s.closed.Load() {
		return dst, engine.ErrClosed
	}
	v, c, err := n.snap.Get(key)
	if err != nil {
		return dst, n.s.wrap(err)
	}
	dst = append(dst, v...)
	return dst, n.s.wrap(c.Close())
}

func (n *snapshot) NewIter(lower, upper []byte) (engine.Iterator, error) {
	if n.snap == nil {
		return nil, engine.ErrClosed
	}
	return n.s.newIter(n.snap, lower, upper)
}

func (n *snapshot) Close() error {
	if n.snap == nil {
		return nil
	}
	snap := n.snap
	n.snap = nil
	defer n.s.done()
	return n.s.wrap(snap.Close())
}

// batch records the first error of its calls for Commit.
type batch struct {
	s     *store
	b     *pebble.Batch
	err   error
	begun bool // Pebble has it
}

func (b *batch) keep(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *batch) Set(key, value []byte) { b.keep(b.b.Set(key, value, nil)) }
func (b *batch) Delete(key []byte)     { b.keep(b.b.Delete(key, nil)) }

func (b *batch) DeleteRange(lower, upper []byte) {
	if string(lower) < string(upper) {
		b.keep(b.b.DeleteRange(lower, upper, nil))
	}
}

func (b *batch) Len() int { return b.b.Len() }

func (b *batch) Commit() error {
	if b.err != nil {
		return b.s.wrap(b.err)
	}
	if !b.s.use() {
		return engine.ErrClosed
	}
	defer b.s.done()
	b.begun = true
	if err := b.apply(); err != nil {
		return b.s.wrap(err)
	}
	b.s.disk.pace.committed.Store(clock.Now().UnixNano())
	return b.s.wrap(b.b.Close())
}

// apply makes the batch visible. With a third memtable Pebble waits for a flush, which on a disk
// that is full, or becomes full, may not end: such a wait cannot be interrupted, so another
// goroutine waits there. If apply returns before it, the batch may still become visible.
func (b *batch) apply() error {
	s := b.s
	need := s.mem.amountOf(int64(b.b.Len()), int64(b.b.Count()))
	s.mem.begin(need)
	commit := func() error {
		err := b.b.Commit(pebble.NoSync)
		s.mem.end(need, err == nil)
		return err
	}
	if !s.mem.behind() && !s.disk.full.Load() && !s.disk.broken.Load() {
		return commit()
	}
	applied := make(chan error, 1)
	s.uses.Add(1)
	go crash.Guarded(func() {
		defer s.done()
		applied <- commit()
	})()
	giveUp := s.o.GiveUp
	var full <-chan time.Time // checks whether the disk is full
	for {
		select {
		case err := <-applied:
			return err
		case <-s.failed:
			return s.failure
		case <-s.closing:
			return engine.ErrClosed
		case <-giveUp:
			poll := clock.NewTicker(clock.System, 20*time.Millisecond)
			defer poll.Stop()
			giveUp, full = nil, poll.C
		case <-full:
			if s.disk.full.Load() {
				return s.disk.lack()
			}
		}
	}
}

// Discard leaves a batch alone that has been committed: after an error, Pebble may still have it.
func (b *batch) Discard() {
	if !b.begun {
		b.keep(b.b.Close())
	}
}

// logger forwards Pebble's messages; a message that Pebble calls fatal stops the engine.
type logger struct{ s *store }

func (l logger) Infof(f string, args ...any)  { l.s.o.Logger.Debug(fmt.Sprintf(f, args...)) }
func (l logger) Errorf(f string, args ...any) { l.s.o.Logger.Warn(fmt.Sprintf(f, args...)) }
func (l logger) Fatalf(f string, args ...any) { l.s.die(fmt.Errorf(f, args...)) }
