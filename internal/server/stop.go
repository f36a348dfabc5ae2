package server

import (
	"context"
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"quorate/internal/crash"
	"quorate/internal/raftlog"
)

// Stop ends the member: leadership is handed over, new work is refused, what is
// in flight gets an error, and what is applied is flushed.
func (m *Member) Stop() {
	m.stopOnce.Do(func() {
		m.leaving.HandOver()
		close(m.replica.stop)
		m.replica.cancel()
		m.replica.bgMu.Lock() // from here on background starts nothing
		m.replica.bgMu.Unlock()
		m.tr.Stop()
		m.peers.Close()
		m.driver.halt()
		close(m.replica.halt)
		m.replica.loopWG.Wait()
		m.replica.props.Close(errStopped)
		m.replica.reads.Close(errStopped)
		m.hub.Close()
		m.replica.mach().V2().Close()
		m.replica.wg.Wait()
		m.replica.mach().Close()
		if m.replica.Err() == nil {
			if err := m.lastFlush(); err != nil {
				m.lg.Warn("failed to flush the store; the log will be replayed at the next start", zap.Error(err))
			}
		}
		for what, c := range map[string]func() error{"store": m.replica.mach().Engine().Close, "raft log": m.log.Close} {
			if err := c(); err != nil && !errors.Is(err, os.ErrClosed) {
				m.lg.Warn("failed to close", zap.String("what", what), zap.Error(err))
			}
		}
	})
}

// lastFlush flushes the store, unless it finds no room: then a flush would wait
// for some until the engine is closed.
func (m *Member) lastFlush() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flushed := make(chan error, 1)
	go crash.Guarded(func() { flushed <- m.replica.mach().Engine().Flush(ctx) })()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for !m.disks.storeFull.Load() {
		select {
		case err := <-flushed:
			return err
		case <-poll.C:
		}
	}
	return raftlog.ErrNoSpace
}
