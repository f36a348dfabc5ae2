package server

import (
	"context"
	"time"

	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/metrics"
)

// The engine gives back the space of deleted records when it rewrites the tables
// that hold them, which it does by itself only while it is written to. So what a
// compaction has deleted is looked after here.

const (
	// compactionPatience is how long a defragmentation waits for compactions, which
	// wait for readers of what they delete.
	compactionPatience = 30 * time.Second
	// A store is rewritten without being asked if more than half of it, and at
	// least reclaimAtLeast, is of no use: so the bytes that are written are fewer than those
	// that are given back.
	reclaimAtLeast = 4 << 20
	// reclaimWithin is how long after a compaction that is looked for; the engine
	// estimates in the background.
	reclaimWithin = 10 * time.Second
)

// reclaim rewrites a store once what was compacted before is deleted from it.
func (m *Member) reclaim(ctx context.Context, mach *apply.Machine) error {
	waiting, cancel := context.WithTimeout(ctx, compactionPatience)
	defer cancel()
	if err := mach.KV().AwaitCompactions(waiting); err != nil && ctx.Err() == nil {
		m.lg.Warn("a compaction waits for readers; the space of what it deletes is given back later", zap.Error(err))
	}
	if err := m.flush(ctx, mach.Engine()); err != nil {
		return err
	}
	if err := mach.Engine().Compact(ctx); err != nil {
		return err
	}
	mach.SetSize(mach.Engine().Size().Total)
	return nil
}

// watchSize keeps the size of the store known to the quota and to metrics, gives
// space back, and forgets tokens whose time is over.
func (m *Member) watchSize() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var (
		compactions int64
		looked      time.Time // when a compaction was last seen to end
		rewriting   chan struct{}
	)
	for {
		mach := m.mach()
		size := mach.Engine().Size()
		mach.SetSize(size.Total)
		m.auth.Tokens().Expire(m.cfg.Clock.Now())
		metrics.MVCCDBTotalSizeInBytes.Set(float64(size.Total))
		metrics.MVCCDBTotalSizeInUseInBytes.Set(float64(size.InUse))
		if n := mach.KV().Compactions(); n != compactions {
			compactions, looked = n, m.cfg.Clock.Now()
			if err := m.flush(m.rootCtx, mach.Engine()); err != nil && m.rootCtx.Err() == nil && m.mach() == mach {
				m.lg.Warn("cannot flush the store", zap.Error(err))
			}
		}
		free := size.Total - size.InUse
		if rewriting == nil && m.cfg.Clock.Now().Sub(looked) < reclaimWithin && free > size.Total/2 && free >= reclaimAtLeast {
			done := make(chan struct{})
			rewriting, looked = done, time.Time{}
			m.background(func() { defer close(done); m.reclaimHalf(mach) })
		}
		select {
		case <-ticker.C:
		case <-rewriting:
			rewriting = nil
		case <-m.rootCtx.Done():
			return
		}
	}
}

// reclaimHalf rewrites a store of which more than half is of no use.
func (m *Member) reclaimHalf(mach *apply.Machine) {
	start := time.Now()
	before := mach.Engine().Size()
	if err := m.reclaim(m.rootCtx, mach); err != nil {
		if m.rootCtx.Err() == nil && m.mach() == mach {
			m.lg.Warn("cannot give space back", zap.Error(err))
		}
		return
	}
	m.lg.Info("gave space back after a compaction", zap.Int64("size-before-bytes", before.Total),
		zap.Int64("size-bytes", mach.Engine().Size().Total), zap.Duration("took", time.Since(start)))
}
