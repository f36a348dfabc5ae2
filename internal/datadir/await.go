package datadir

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/raftlog"
)

const (
	awaitPoll = 50 * time.Millisecond
	// awaitRepeat is the interval at which etcd repeats that the store is locked.
	awaitRepeat = 10 * time.Second
)

// Await calls open until it succeeds or fails with an error other than "another
// process uses the directory", as when a new process is started while the old one
// is still shutting down. It logs that it waits, and reports it to working if that
// is not nil. It returns when ctx is done.
func Await(ctx context.Context, l Layout, lg *zap.Logger, working func(status string), open func() error) error {
	began, said := clock.Now(), time.Time{}
	for {
		err := open()
		if !errors.Is(err, ErrInUse) && !errors.Is(err, raftlog.ErrInUse) {
			if err == nil && !said.IsZero() {
				lg.Info("the data directory is free", zap.String("data-dir", l.DataDir), zap.Duration("took", clock.Since(began)))
			}
			return err
		}
		switch {
		case said.IsZero():
			lg.Warn("another process uses the data directory; waiting until it ends", zap.String("data-dir", l.DataDir), zap.Error(err))
			if working != nil {
				working("waiting for another process that uses the data directory " + l.DataDir)
			}
			said = clock.Now()
		case clock.Since(said) >= awaitRepeat:
			lg.Info("db file is flocked by another process, or taking too long", zap.String("path", l.Member()), zap.Duration("took", clock.Since(began)))
			said = clock.Now()
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-clock.After(awaitPoll):
		}
	}
}
