package server

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// forceNewCluster makes a cluster of this member alone, without asking the
// others, for a cluster that has lost its quorum. Everything in the log stays, and
// committed entries that remove everybody else follow it. Cluster id and member id
// stay. The others must not run any more; one that comes back is told that it was
// removed.
//
// Nobody is left who could say which of the last entries are committed, and the
// log says it late: a commit index is not synced, and a follower hears of it after
// the client does. An entry that was acknowledged is in the log of every member of
// some quorum, so whatever this member may have acknowledged, alone or with others,
// is kept with all there is. An entry that was not acknowledged has told its client
// nothing or that its time was up; it may take effect.
func (m *Member) forceNewCluster() error {
	s := survivor{log: m.log, cluster: m.cluster, applied: m.mach().Applied(), peerURLs: m.cfg.PeerURLs}
	p, err := s.plan()
	if err != nil {
		return fmt.Errorf("--force-new-cluster on %s: %w", m.cfg.DataDir, err)
	}
	if p.unproven > 0 {
		m.lg.Info("keeping WAL entries that are not known to be committed", zap.Uint64("entry-index", p.commit+1),
			zap.Uint64("commit-index-from-wal", p.walCommit), zap.Uint64("number-of-kept-entries", p.unproven))
	}
	if p.spared > 0 {
		m.lg.Warn("leaving out a removal of this member that is not known to be committed", zap.Uint64("entry-index", p.spared))
	}
	if err := m.log.Append(p.state, p.entries, true); err != nil {
		return fmt.Errorf("write the entries of --force-new-cluster: %w", err)
	}
	m.lg.Info("forcing restart member", zap.String("cluster-id", membership.FormatID(m.cluster.ID())), m.localID(),
		zap.Uint64("wal-commit-index", p.walCommit), zap.Uint64("commit-index", p.state.GetCommit()))
	return nil
}

// survivor is the member that goes on alone.
type survivor struct {
	log      *raftlog.Log
	cluster  *membership.Cluster
	applied  uint64
	peerURLs []string
}

// forcePlan is what is to be written to the log of a survivor.
type forcePlan struct {
	walCommit uint64 // as the log states it
	commit    uint64 // as far as is proved
	unproven  uint64 // entries behind that
	spared    uint64 // index of a removal of the survivor that is left out, 0 for none
	entries   []*raftpb.Entry
	state     *raftpb.HardState
}

func (s survivor) plan() (forcePlan, error) {
	var p forcePlan
	hs, _, err := s.log.InitialState()
	if err != nil {
		return p, fmt.Errorf("read hard state: %w", err)
	}
	last, err := s.log.LastIndex()
	if err != nil {
		return p, err
	}
	p.walCommit = hs.GetCommit()
	p.commit = max(p.walCommit, s.applied) // what is applied was committed
	p.unproven = last - p.commit
	pending, err := s.pending(&p, last)
	if err != nil {
		return p, err
	}
	changes, err := s.cluster.LeaveAlone(pending, s.peerURLs)
	if err != nil {
		return p, err
	}
	term := max(hs.GetTerm(), 1)
	for _, cc := range changes {
		data, err := proto.Marshal(cc)
		if err != nil {
			return p, fmt.Errorf("encode configuration change: %w", err)
		}
		last++
		p.entries = append(p.entries, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Term: new(term), Index: new(last), Data: data})
	}
	p.state = &raftpb.HardState{Term: new(term), Vote: new(hs.GetVote()), Commit: new(last)}
	return p, nil
}

// pending returns the membership changes in the log that are not applied. A removal
// of the survivor itself counts only if it is known to be committed; otherwise an
// empty entry takes its place, and what is behind it is written again.
func (s survivor) pending(p *forcePlan, last uint64) ([]*raftpb.ConfChange, error) {
	var changes []*raftpb.ConfChange
	for next := s.applied + 1; next <= last; {
		ents, err := s.log.Entries(next, last+1, maxApplyBytes)
		if err != nil {
			return nil, fmt.Errorf("read the entries that are not applied: %w", err)
		}
		for _, e := range ents {
			cc := confChangeOf(e)
			if cc != nil && cc.GetType() == raftpb.ConfChangeRemoveNode && cc.GetNodeId() == s.cluster.LocalID() && e.GetIndex() > p.commit {
				p.spared = e.GetIndex()
				e, cc = &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(e.GetTerm()), Index: new(e.GetIndex())}, nil
			}
			if cc != nil {
				changes = append(changes, cc)
			}
			if p.spared > 0 {
				p.entries = append(p.entries, e)
			}
		}
		next += uint64(len(ents))
	}
	return changes, nil
}

// confChangeOf returns the membership change that an entry is, nil if it is none or if
// it cannot be read, which apply has to answer for.
func confChangeOf(e *raftpb.Entry) *raftpb.ConfChange {
	cc := &raftpb.ConfChange{}
	if e.GetType() != raftpb.EntryConfChange || proto.Unmarshal(e.Data, cc) != nil {
		return nil
	}
	return cc
}
