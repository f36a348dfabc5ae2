package datadir

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// proveCommit writes to the log how far it is committed, as far as this can be told from
// what is on the disk. A commit index is not synced, so after a crash the log states less
// than clients have been told; etcd's --force-new-cluster throws away what is behind it.
//
// What the store has applied was committed. Behind that, a member which is the only voter
// commits what it has on its disk, nobody else can replace it, and raft would say so as
// soon as the member starts. An entry that may give others a vote is the last one of which
// this is certain. Where there are other voters nothing is: what is not committed may be
// replaced by their leader, and a member that took it for committed would end at that, or
// worse. So there the commit index stays, and the log of the program names the way.
func proveCommit(log *raftlog.Log, eng engine.Reader, applied uint64, o Options) error {
	hs := log.HardState()
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	c := membership.New(membership.Options{ServerVersion: o.Version, Aside: true})
	if err := c.Load(eng); err != nil {
		return err
	}
	p := proof{self: log.Metadata().NodeID, voters: c.VoterIDs(), known: max(hs.GetCommit(), applied)}
	if err := p.read(log, applied+1, last); err != nil {
		return err
	}
	if p.commit < last {
		o.Logger.Warn("the raft log ends with entries that are not known to be committed. Started in its cluster, etcd hears from the other members which of them are. "+
			"With --force-new-cluster etcd drops them all, also writes that were acknowledged: to go on with this member alone, "+
			"start this program with --force-new-cluster once, which keeps them, stop it, and hand the directory over then",
			zap.Uint64("entry-index", p.commit+1), zap.Uint64("number-of-entries", last-p.commit))
	}
	if p.commit <= hs.GetCommit() || hs.GetTerm() == 0 {
		return nil
	}
	next := &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(p.commit)}
	if err := log.Append(next, nil, true); err != nil {
		return fmt.Errorf("write the commit index: %w", err)
	}
	return nil
}

// proof follows the voters through the entries of a log.
type proof struct {
	self   uint64
	voters []uint64 // at least those that there are
	known  uint64   // commit index that needs no proof
	commit uint64   // commit index that is proved
}

// read goes through the entries behind those that the store has applied.
func (p *proof) read(log *raftlog.Log, next, last uint64) error {
	p.commit = p.known
	for next <= last {
		ents, err := log.Entries(next, last+1, 4<<20)
		if err != nil {
			return err
		}
		for _, e := range ents {
			if e.GetIndex() > p.known && !p.alone() {
				return nil
			}
			p.follow(e)
			p.commit = max(p.known, e.GetIndex())
		}
		next += uint64(len(ents))
	}
	return nil
}

func (p *proof) alone() bool { return len(p.voters) == 1 && p.voters[0] == p.self }

// follow takes note of who may have a vote when an entry is applied. A change that gives
// one may have been refused; one that takes another member's away while this one is a voter
// is not, if there is such a member.
func (p *proof) follow(e *raftpb.Entry) {
	if e.GetType() == raftpb.EntryNormal {
		return
	}
	cc := &raftpb.ConfChange{}
	if e.GetType() != raftpb.EntryConfChange || proto.Unmarshal(e.Data, cc) != nil {
		p.voters = nil // nobody knows what this means
		return
	}
	id := cc.GetNodeId()
	switch has := slices.Contains(p.voters, id); cc.GetType() {
	case raftpb.ConfChangeAddNode:
		if !has {
			p.voters = append(p.voters, id)
		}
	case raftpb.ConfChangeRemoveNode:
		if has && id != p.self && slices.Contains(p.voters, p.self) {
			p.voters = slices.DeleteFunc(slices.Clone(p.voters), func(v uint64) bool { return v == id })
		}
	}
}
