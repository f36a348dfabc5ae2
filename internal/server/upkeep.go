package server

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/auth"
	"quorate/internal/autocompact"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// UpkeepOptions configures the maintenance of the store.
type UpkeepOptions struct {
	// FlushInterval is how often the engine flushes its memory to disk, so that a restart
	// has less to replay; 0 leaves that to the bound of the engine's memory.
	FlushInterval time.Duration
	// DefragThreshold is the number of bytes that a compaction of the store at start must
	// promise to free for it to run; 0 means never.
	DefragThreshold int64
	AutoCompaction  autocompact.Retention
	// DowngradeCheck is how often a leader checks whether a downgrade is complete; 0 means never.
	DowngradeCheck time.Duration
}

// upkeep bounds the size of the store, and compacts its history.
type upkeep struct {
	cfg         *Config
	lg          *zap.Logger
	replica     *localReplica
	auth        *auth.Store
	KV          *KV
	Maintenance *Maintenance

	// Used by watchSize.
	compactions int64
	looked      time.Time   // when the end of a compaction was last observed
	rewriting   atomic.Bool // the store is being rewritten
	flushed     ids.Index   // used by flushStore: the applied index at the last flush
}

// The engine releases the space of deleted records when it rewrites the tables that contain
// them, which it does on its own only while it is written to. So the member has to trigger
// that after a compaction.

// compactionPatience is how long a defragmentation waits for compactions, which wait for
// readers of what they delete. Only tests change it.
var compactionPatience = 30 * time.Second

const (
	// A store is rewritten automatically if more than half of it, and at least
	// reclaimAtLeast, is garbage: then it writes fewer bytes than it releases.
	reclaimAtLeast = 4 << 20
	// reclaimWithin is how long after a compaction the garbage is checked; the engine
	// estimates it in the background.
	reclaimWithin = 10 * time.Second
)

// reclaim rewrites a store after the records of earlier compactions are deleted.
func (u *upkeep) reclaim(ctx context.Context, mach *apply.Machine) error {
	waiting, cancel := context.WithTimeout(ctx, compactionPatience)
	defer cancel()
	if err := mach.KV().AwaitCompactions(waiting); err != nil && ctx.Err() == nil {
		u.lg.Warn("a compaction waits for readers; its space is reclaimed later", zap.Error(err))
	}
	if err := u.replica.flush(ctx, mach.Engine()); err != nil {
		return err
	}
	if err := mach.Engine().Compact(ctx); err != nil {
		return err
	}
	mach.SetSize(mach.Engine().Size().Total)
	return nil
}

// watchSize updates the size of the store for the quota and the metrics, releases space, and
// drops expired tokens.
func (u *upkeep) watchSize(ctx context.Context) {
	mach := u.replica.mach()
	size := mach.Engine().Size()
	mach.SetSize(size.Total)
	now := u.cfg.Clock.Now()
	u.auth.Tokens().Expire(now)
	metrics.MVCCDBTotalSizeInBytes.Set(float64(size.Total))
	metrics.MVCCDBTotalSizeInUseInBytes.Set(float64(size.InUse))
	if n := mach.KV().Compactions(); n != u.compactions {
		u.compactions, u.looked = n, now
		if err := u.replica.flush(ctx, mach.Engine()); err != nil && ctx.Err() == nil && u.replica.mach() == mach {
			u.lg.Warn("cannot flush the store", zap.Error(err))
		}
	}
	free := size.Total - size.InUse
	if u.cfg.Clock.Now().Sub(u.looked) < reclaimWithin && free > size.Total/2 && free >= reclaimAtLeast && u.rewriting.CompareAndSwap(false, true) {
		u.looked = time.Time{}
		u.replica.background(func() { defer u.rewriting.Store(false); u.reclaimHalf(mach) })
	}
}

// reclaimHalf rewrites a store of which more than half is garbage.
func (u *upkeep) reclaimHalf(mach *apply.Machine) {
	start := u.cfg.Clock.Now()
	before := mach.Engine().Size()
	if err := u.reclaim(u.replica.rootCtx, mach); err != nil {
		if u.replica.rootCtx.Err() == nil && u.replica.mach() == mach {
			u.lg.Warn("failed to reclaim space", zap.Error(err))
		}
		return
	}
	u.lg.Info("reclaimed space after a compaction", zap.Int64("size-before-bytes", before.Total),
		zap.Int64("size-bytes", mach.Engine().Size().Total), zap.Duration("took", u.cfg.Clock.Now().Sub(start)))
}

// flushStore flushes the engine's memory to disk at the configured interval.
func (u *upkeep) flushStore(ctx context.Context) {
	mach := u.replica.mach()
	applied := mach.Applied()
	if applied == u.flushed {
		return
	}
	// A failure loses nothing, as the entries stay in the log; see truncateOnce.
	if err := u.replica.flush(ctx, mach.Engine()); err != nil {
		if ctx.Err() == nil && u.replica.mach() == mach {
			u.lg.Warn("cannot flush the store", zap.String("dir", u.replica.storeDir()), zap.Error(err))
		}
		return
	}
	u.flushed = applied
}

// defragmentAtStart compacts the store once if that promises to free enough. The start does
// not wait for it.
func (u *upkeep) defragmentAtStart(ctx context.Context) {
	size := u.replica.mach().Engine().Size()
	if free := size.Total - size.InUse; free < u.cfg.Upkeep.DefragThreshold {
		u.lg.Info("Skipping defragmentation", zap.Int64("current-db-size-bytes", size.Total), zap.String("current-db-size", humanize.Bytes(uint64(size.Total))),
			zap.Int64("current-db-size-in-use-bytes", size.InUse), zap.String("current-db-size-in-use", humanize.Bytes(uint64(size.InUse))),
			zap.Int64("bootstrap-defrag-threshold-bytes", u.cfg.Upkeep.DefragThreshold), zap.String("bootstrap-defrag-threshold", humanize.Bytes(uint64(u.cfg.Upkeep.DefragThreshold))))
		return
	}
	if err := u.Maintenance.Defragment(ctx); err != nil && ctx.Err() == nil {
		u.lg.Warn("bootstrap defragmentation failed", zap.Error(err))
	}
}
