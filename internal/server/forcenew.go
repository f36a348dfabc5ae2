package server

import (
	"fmt"

	"go.uber.org/zap"

	"quorate/internal/datadir"
)

// forceNewCluster makes a cluster of this member alone, without asking the others, after
// the cluster has lost its quorum. The log is retained, followed by committed entries
// that remove all other members. Cluster id and member id stay. The other members must
// not run any more; one that comes back is told that it was removed.
func (o *opening) forceNewCluster() error {
	s := datadir.Survivor{Log: o.log, Cluster: o.cluster, Applied: o.replica.mach().Applied(), PeerURLs: o.cfg.PeerURLs}
	p, err := s.Plan()
	if err != nil {
		return fmt.Errorf("--force-new-cluster on %s: %w", o.cfg.DataDir, err)
	}
	if p.Unproven > 0 {
		o.lg.Info("keeping WAL entries that are not known to be committed", zap.Uint64("entry-index", uint64(p.Commit+1)),
			zap.Uint64("commit-index-from-wal", uint64(p.WALCommit)), zap.Uint64("number-of-kept-entries", p.Unproven))
	}
	if p.Spared > 0 {
		o.lg.Warn("skipping a removal of this member that is not known to be committed", zap.Uint64("entry-index", uint64(p.Spared)))
	}
	if err := o.log.Append(p.State, p.Entries, true); err != nil {
		return fmt.Errorf("write the entries of --force-new-cluster: %w", err)
	}
	o.lg.Info("forcing restart member", zap.Stringer("cluster-id", o.cluster.ID()), o.replica.localID(),
		zap.Uint64("wal-commit-index", uint64(p.WALCommit)), zap.Uint64("commit-index", p.State.GetCommit()))
	return nil
}
