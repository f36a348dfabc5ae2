package server

import (
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/autocompact"
)

// AutoCompaction says how much history to keep; the zero value keeps all.
type AutoCompaction struct {
	Period    time.Duration // the changes of that time
	Revisions int64         // else so many revisions
}

// autoCompact compacts on the leader as the policy decides; all members observe.
func (m *Member) autoCompact() {
	keep := m.cfg.AutoCompaction
	var policy autocompact.Policy = autocompact.NewRevision(keep.Revisions)
	mode, kept := "revision", zap.Int64("revision-compaction-retention", keep.Revisions)
	if keep.Period > 0 {
		policy = autocompact.NewPeriodic(keep.Period, m.cfg.Clock.Now(), m.Rev())
		mode, kept = "periodic", zap.Duration("compact-period", keep.Period)
	}
	ticker := time.NewTicker(policy.Interval())
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-m.rootCtx.Done():
			return
		}
		if m.isLeader() {
			if rev, due := policy.Due(m.cfg.Clock.Now(), m.Rev()); due {
				m.compactTo(policy, rev, mode, kept)
			}
		}
		policy.Record(m.Rev())
	}
}

func (m *Member) compactTo(policy autocompact.Policy, rev int64, mode string, kept zap.Field) {
	to := zap.Int64("revision", rev)
	m.lg.Info("starting auto "+mode+" compaction", to, kept)
	start := m.cfg.Clock.Now()
	_, err := m.Compact(m.rootCtx, &pb.CompactionRequest{Revision: rev})
	now := m.cfg.Clock.Now()
	if err != nil && !errors.Is(err, rpctypes.ErrGRPCCompacted) {
		m.lg.Warn("failed auto "+mode+" compaction", to, kept, zap.Duration("retry-interval", policy.Interval()), zap.Error(err))
		return
	}
	policy.Compacted(now, rev)
	m.lg.Info("completed auto "+mode+" compaction", to, kept, zap.Duration("took", now.Sub(start)))
}
