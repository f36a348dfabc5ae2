package membership

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// ErrLocalRemoved is returned when the old cluster has removed the local member: a
// removed id never comes back, so it cannot form a new cluster.
var ErrLocalRemoved = errors.New("this member was removed from its cluster")

// LeaveAlone returns the changes that make the local member the only one, and a voter,
// of the cluster after pending, the committed changes that are not applied yet.
// peerURLs are those of a local member that the cluster does not know yet.
func (c *Cluster) LeaveAlone(pending []*raftpb.ConfChange, peerURLs []string) ([]*raftpb.ConfChange, error) {
	s := c.st.Load()
	for _, cc := range pending {
		if next, _, err := s.after(cc, c.maxLearners); err == nil { // apply rejects what is rejected here
			s = next
		}
	}
	if s.removed[c.localID] {
		return nil, ErrLocalRemoved
	}
	var changes []*raftpb.ConfChange
	add := func(cc *raftpb.ConfChange, err error) error {
		if err == nil {
			s, _, err = s.after(cc, c.maxLearners)
		}
		if err != nil {
			return fmt.Errorf("leave member %s alone: %w", c.localID, err)
		}
		changes = append(changes, cc)
		return nil
	}
	// The local member comes first: raft must always have a voter.
	i, known := s.find(c.localID)
	switch {
	case !known:
		local := Member{ID: c.localID, PeerURLs: slices.Sorted(slices.Values(peerURLs))}
		if err := add(AddChange(local)); err != nil {
			return nil, err
		}
	case s.members[i].IsLearner:
		if err := add(PromoteChange(c.localID)); err != nil {
			return nil, err
		}
	}
	for _, m := range s.members {
		if m.ID == c.localID {
			continue
		}
		if err := add(RemoveChange(m.ID), nil); err != nil {
			return nil, err
		}
	}
	return changes, nil
}
