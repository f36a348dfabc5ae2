package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/raftlog"
)

// Storage is what raft reads: the log, and what only the store knows.
type Storage struct {
	*raftlog.Log
	confState *raftpb.ConfState
	applied   uint64
	snapshot  func() (*raftpb.Snapshot, error)
}

// NewStorage joins a log with the membership and applied index of the store as
// they are at start, and with a function that describes the store's state for a
// follower that needs what the log no longer has. Only the metadata counts: the
// data is made when it is sent.
func NewStorage(log *raftlog.Log, confState *raftpb.ConfState, applied uint64, snapshot func() (*raftpb.Snapshot, error)) *Storage {
	return &Storage{Log: log, confState: confState, applied: applied, snapshot: snapshot}
}

// InitialState returns the hard state, with a commit index no lower than what is
// applied: a commit index alone is not synced, and what was applied was
// committed.
func (s *Storage) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	hs, _, err := s.Log.InitialState()
	if err != nil {
		return nil, nil, fmt.Errorf("read hard state: %w", err)
	}
	if hs.GetCommit() < s.applied {
		hs = &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(s.applied)}
	}
	return hs, s.confState, nil
}

// Snapshot describes the state of the store.
func (s *Storage) Snapshot() (*raftpb.Snapshot, error) { return s.snapshot() }
