package server

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/autocompact"
	"quorate/internal/ids"
	"quorate/internal/task"
)

// autoCompaction returns the task that compacts as the policy decides: on the leader
// only, but all members observe the revisions.
func (u *upkeep) autoCompaction() task.Task {
	keep := u.cfg.Upkeep.AutoCompaction
	policy := keep.Policy(u.cfg.Clock.Now(), u.replica.Rev())
	mode, kept := "revision", zap.Int64("revision-compaction-retention", keep.Revisions)
	if keep.Period > 0 {
		mode, kept = "periodic", zap.Duration("compact-period", keep.Period)
	}
	return task.Task{Name: "auto compaction", Every: policy.Interval(), Run: func(context.Context) {
		if u.replica.isLeader() {
			if rev, due := policy.Due(u.cfg.Clock.Now(), u.replica.Rev()); due {
				u.compactTo(policy, rev, mode, kept)
			}
		}
		policy.Record(u.replica.Rev())
	}}
}

func (u *upkeep) compactTo(policy autocompact.Policy, rev ids.Revision, mode string, kept zap.Field) {
	to := zap.Int64("revision", int64(rev))
	u.lg.Info("starting auto "+mode+" compaction", to, kept)
	start := u.cfg.Clock.Now()
	_, err := u.KV.Compact(u.replica.rootCtx, &pb.CompactionRequest{Revision: int64(rev)})
	now := u.cfg.Clock.Now()
	if err != nil && !errors.Is(err, rpctypes.ErrGRPCCompacted) {
		u.lg.Warn("failed auto "+mode+" compaction", to, kept, zap.Duration("retry-interval", policy.Interval()), zap.Error(err))
		return
	}
	policy.Compacted(now, rev)
	u.lg.Info("completed auto "+mode+" compaction", to, kept, zap.Duration("took", now.Sub(start)))
}
