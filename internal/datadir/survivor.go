package datadir

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// Survivor is a member that continues alone, for a cluster that has lost its quorum.
type Survivor struct {
	Log      *raftlog.Log
	Cluster  *membership.Cluster
	Applied  ids.Index // index that its store has applied
	PeerURLs []string
}

// SurvivorPlan is what is to be written to the log of a survivor: entries, and the
// hard state that commits the whole log. Existing entries stay.
type SurvivorPlan struct {
	WALCommit ids.Index // as the log states it
	Commit    ids.Index // as far as is proved
	Unproven  uint64    // entries after that
	Spared    ids.Index // index of a removal of the survivor that is left out, 0 for none
	Entries   []*raftpb.Entry
	State     *raftpb.HardState
}

// Plan returns what makes the survivor the only member. Errors are those of the log.
//
// No other member is left that could tell which of the last entries are committed, and
// the log knows it late: a commit index is not synced, and a follower learns of it
// after the client does. An acknowledged entry is in the log of every member of some
// quorum, so all entries are kept, which includes whatever this member may have
// acknowledged. The client of an entry that was not acknowledged has got no answer or
// a timeout; the entry may take effect.
func (s Survivor) Plan() (SurvivorPlan, error) {
	var p SurvivorPlan
	hs, _, err := s.Log.InitialState()
	if err != nil {
		return p, fmt.Errorf("read hard state: %w", err)
	}
	last, err := s.Log.LastIndex()
	if err != nil {
		return p, err
	}
	p.WALCommit = ids.Index(hs.GetCommit())
	p.Commit = max(p.WALCommit, s.Applied) // what is applied was committed
	p.Unproven = uint64(ids.Index(last) - p.Commit)
	pending, err := s.pending(&p, ids.Index(last))
	if err != nil {
		return p, err
	}
	changes, err := s.Cluster.LeaveAlone(pending, s.PeerURLs)
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
		p.Entries = append(p.Entries, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Term: new(term), Index: new(last), Data: data})
	}
	p.State = &raftpb.HardState{Term: new(term), Vote: new(hs.GetVote()), Commit: new(last)}
	return p, nil
}

// pendingBytes bounds how much of the log is read at a time.
const pendingBytes = 4 << 20

// pending returns the membership changes in the log that are not applied. A removal
// of the survivor itself counts only if it is known to be committed; otherwise an
// empty entry replaces it, and the entries after it are written again.
func (s Survivor) pending(p *SurvivorPlan, last ids.Index) ([]*raftpb.ConfChange, error) {
	var changes []*raftpb.ConfChange
	for next := s.Applied + 1; next <= last; {
		ents, err := s.Log.Entries(uint64(next), uint64(last+1), pendingBytes)
		if err != nil {
			return nil, fmt.Errorf("read the entries that are not applied: %w", err)
		}
		for _, e := range ents {
			cc := confChangeOf(e)
			if cc != nil && cc.GetType() == raftpb.ConfChangeRemoveNode && ids.Member(cc.GetNodeId()) == s.Cluster.LocalID() && ids.Index(e.GetIndex()) > p.Commit {
				p.Spared = ids.Index(e.GetIndex())
				e, cc = &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(e.GetTerm()), Index: new(e.GetIndex())}, nil
			}
			if cc != nil {
				changes = append(changes, cc)
			}
			if p.Spared > 0 {
				p.Entries = append(p.Entries, e)
			}
		}
		next += ids.Index(len(ents))
	}
	return changes, nil
}

// confChangeOf returns the membership change in an entry; nil if there is none or if
// it cannot be decoded, which apply reports.
func confChangeOf(e *raftpb.Entry) *raftpb.ConfChange {
	cc := &raftpb.ConfChange{}
	if e.GetType() != raftpb.EntryConfChange || proto.Unmarshal(e.Data, cc) != nil {
		return nil
	}
	return cc
}
