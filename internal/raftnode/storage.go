package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
	"quorate/internal/raftlog"
)

// Storage is the raft.Storage of a member: the log, plus the state that only the store has.
type Storage struct {
	*raftlog.Log
	confState *raftpb.ConfState
	applied   ids.Index
	snapshot  func() (*raftpb.Snapshot, error)
}

// NewStorage combines a log with the membership and applied index of the store at start,
// and with a function that describes the current state of the store, for a follower that
// needs entries which the log no longer has. Only the metadata of that snapshot matters:
// its data is produced when it is sent.
func NewStorage(log *raftlog.Log, confState *raftpb.ConfState, applied ids.Index, snapshot func() (*raftpb.Snapshot, error)) *Storage {
	return &Storage{Log: log, confState: confState, applied: applied, snapshot: snapshot}
}

// InitialState returns the hard state, with a commit index no lower than the applied index:
// a commit index alone is not synced, and applied entries are committed.
func (s *Storage) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	hs, _, err := s.Log.InitialState()
	if err != nil {
		return nil, nil, fmt.Errorf("read hard state: %w", err)
	}
	if ids.Index(hs.GetCommit()) < s.applied {
		hs = &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(uint64(s.applied))}
	}
	return hs, s.confState, nil
}

// Snapshot describes the current state of the store.
func (s *Storage) Snapshot() (*raftpb.Snapshot, error) { return s.snapshot() }
