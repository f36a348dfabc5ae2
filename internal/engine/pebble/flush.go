package pebble

import (
	"context"

	"quorate/internal/crash"
	"quorate/internal/engine"
)

// begunFlush is the result of starting a flush.
type begunFlush struct {
	before amount          // of the commits that had ended before
	done   <-chan struct{} // closed when the flush is complete
	err    error
}

// Flush implements engine.Engine. On a full disk it waits for space.
func (s *store) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := await(ctx, s, s.flushTurn); err != nil {
		return err
	}
	// With a third memtable, Pebble would let this flush and all writers wait. Under load, a
	// flush follows another at once: two that end are enough, because the signal of the first may
	// be an old one.
	for ended := 0; ended < 2 && s.mem.isFlushing(); ended++ {
		if _, err := await(ctx, s, s.mem.ended); err != nil {
			s.flushTurn <- struct{}{}
			return err
		}
	}
	if !s.use() {
		s.flushTurn <- struct{}{}
		return engine.ErrClosed
	}
	// Pebble starts a flush after the pending commits, which block on a full disk. Only
	// one call at a time waits there: callers that give up leave no goroutines behind.
	begun := make(chan begunFlush, 1)
	go crash.Guarded(func() {
		defer s.done()
		defer func() { s.flushTurn <- struct{}{} }()
		f := begunFlush{before: s.mem.committed()}
		f.done, f.err = s.db.AsyncFlush()
		begun <- f
	})()
	f, err := await(ctx, s, begun)
	if err == nil {
		err = s.wrap(f.err)
	}
	if err != nil {
		return err
	}
	if _, err := await(ctx, s, f.done); err != nil {
		return err
	}
	s.mem.written(f.before)
	return nil
}

// await receives from c, unless ctx is done or the engine fails, stops or closes before.
func await[T any](ctx context.Context, s *store, c <-chan T) (v T, err error) {
	select {
	case v = <-c:
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.failed:
		err = s.failure
	case <-s.fatal:
		err = ErrFatal
	case <-s.closing:
		err = engine.ErrClosed
	}
	return v, err
}
