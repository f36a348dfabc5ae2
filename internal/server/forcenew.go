package server

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/membership"
)

// forceNewCluster makes a cluster of this member alone, without asking the
// others, for a cluster that has lost its quorum. What is known to be committed
// stays, what is not goes, and committed entries that remove everybody else take
// its place. Cluster id and member id stay. The others must not run any more;
// one that comes back is told that it was removed.
func (m *Member) forceNewCluster() error {
	hs, _, err := m.log.InitialState()
	if err != nil {
		return fmt.Errorf("read hard state: %w", err)
	}
	last, err := m.log.LastIndex()
	if err != nil {
		return err
	}
	// A commit index alone is not synced; what is applied was committed.
	commit := max(hs.GetCommit(), m.mach().Applied())
	pending, err := m.pendingChanges(commit)
	if err != nil {
		return err
	}
	changes, err := m.cluster.LeaveAlone(pending, m.cfg.PeerURLs)
	if err != nil {
		return fmt.Errorf("--force-new-cluster on %s: %w", m.cfg.DataDir, err)
	}
	if last > commit {
		m.lg.Info("discarding uncommitted WAL entries", zap.Uint64("entry-index", commit+1),
			zap.Uint64("commit-index-from-wal", hs.GetCommit()), zap.Uint64("number-of-discarded-entries", last-commit))
	}
	term := max(hs.GetTerm(), 1)
	var ents []*raftpb.Entry
	for _, cc := range changes {
		data, err := proto.Marshal(cc)
		if err != nil {
			return fmt.Errorf("encode configuration change: %w", err)
		}
		ents = append(ents, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Term: new(term), Index: new(commit + 1 + uint64(len(ents))), Data: data})
	}
	if len(ents) == 0 && last > commit {
		// Something has to take the place of what is discarded.
		ents = append(ents, &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(term), Index: new(commit + 1)})
	}
	end := commit + uint64(len(ents))
	if len(ents) > 0 {
		state := &raftpb.HardState{Term: new(term), Vote: new(hs.GetVote()), Commit: new(end)}
		if err := m.log.Append(state, ents, true); err != nil {
			return fmt.Errorf("write the entries of --force-new-cluster: %w", err)
		}
	}
	m.lg.Info("forcing restart member", zap.String("cluster-id", membership.FormatID(m.cluster.ID())), m.localID(),
		zap.Uint64("wal-commit-index", hs.GetCommit()), zap.Uint64("commit-index", end))
	return nil
}

// pendingChanges returns the membership changes up to commit that are not applied.
func (m *Member) pendingChanges(commit uint64) ([]*raftpb.ConfChange, error) {
	var changes []*raftpb.ConfChange
	for next := m.mach().Applied() + 1; next <= commit; {
		ents, err := m.log.Entries(next, commit+1, maxApplyBytes)
		if err != nil {
			return nil, fmt.Errorf("read committed entries: %w", err)
		}
		for _, e := range ents {
			if e.GetType() != raftpb.EntryConfChange {
				continue
			}
			cc := &raftpb.ConfChange{}
			if err := proto.Unmarshal(e.Data, cc); err != nil {
				return nil, fmt.Errorf("decode configuration change %d: %w", e.GetIndex(), err)
			}
			changes = append(changes, cc)
		}
		next += uint64(len(ents))
	}
	return changes, nil
}
