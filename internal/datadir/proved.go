package datadir

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// prove finds out how far the log is committed, as far as that can be proved from what is
// on disk. A commit index is not synced, so after a crash the log has a lower one than
// clients have been told; etcd's --force-new-cluster drops the entries after it.
//
// What the store has applied was committed. After that, a member that is the only voter
// commits what is on its disk: no other member can replace it, and raft would commit it
// when the member starts. This holds up to and including the first entry that may make
// another member a voter. With other voters nothing is certain: their leader may replace
// uncommitted entries, and a member that took one for committed would panic, or worse.
func prove(log *raftlog.Log, eng engine.Reader, applied ids.Index, o Options) (*proof, error) {
	last, err := log.LastIndex()
	if err != nil {
		return nil, err
	}
	c := membership.New(membership.Options{ServerVersion: o.Version, Aside: true})
	if err := c.Load(eng); err != nil {
		return nil, err
	}
	p := &proof{self: log.Metadata().NodeID, voters: c.VoterIDs(), known: max(ids.Index(log.HardState().GetCommit()), applied)}
	return p, p.read(log, applied+1, ids.Index(last))
}

// record raises the commit index in the log to what is proved. Where nothing is certain,
// the commit index stays, and a log message tells the operator what to do.
func (p *proof) record(log *raftlog.Log, o Options) error {
	hs := log.HardState()
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	if p.commit < ids.Index(last) {
		o.Logger.Warn("the raft log ends with entries that are not known to be committed. Started in its cluster, etcd hears from the other members which of them are. "+
			"With --force-new-cluster etcd drops them all, also writes that were acknowledged: to go on with this member alone, "+
			"start this program with --force-new-cluster once, which keeps them, stop it, and hand the directory over then",
			zap.Uint64("entry-index", uint64(p.commit+1)), zap.Uint64("number-of-entries", uint64(ids.Index(last)-p.commit)))
	}
	if p.commit <= ids.Index(hs.GetCommit()) || hs.GetTerm() == 0 {
		return nil
	}
	next := &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(uint64(p.commit))}
	if err := log.Append(next, nil, true); err != nil {
		return fmt.Errorf("write the commit index: %w", err)
	}
	return nil
}

// proof tracks the voters through the entries of a log.
type proof struct {
	self   ids.Member
	voters []ids.Member // a superset of the actual voters
	known  ids.Index    // commit index that needs no proof
	commit ids.Index    // commit index that is proved
}

// read processes the entries after those that the store has applied.
func (p *proof) read(log *raftlog.Log, next, last ids.Index) error {
	p.commit = p.known
	for next <= last {
		ents, err := log.Entries(uint64(next), uint64(last+1), 4<<20)
		if err != nil {
			return err
		}
		for _, e := range ents {
			if ids.Index(e.GetIndex()) > p.known && !p.alone() {
				return nil
			}
			p.follow(e)
			p.commit = max(p.known, ids.Index(e.GetIndex()))
		}
		next += ids.Index(len(ents))
	}
	return nil
}

func (p *proof) alone() bool { return len(p.voters) == 1 && p.voters[0] == p.self }

// follow updates the set of possible voters for an entry. A change that adds a voter may
// have been refused when applied. A change that removes another voter while this member
// is a voter is never refused, if that voter exists.
func (p *proof) follow(e *raftpb.Entry) {
	if e.GetType() == raftpb.EntryNormal {
		return
	}
	cc := &raftpb.ConfChange{}
	if e.GetType() != raftpb.EntryConfChange || proto.Unmarshal(e.Data, cc) != nil {
		p.voters = nil // unknown kind of change
		return
	}
	id := ids.Member(cc.GetNodeId())
	switch has := slices.Contains(p.voters, id); cc.GetType() {
	case raftpb.ConfChangeAddNode:
		if !has {
			p.voters = append(p.voters, id)
		}
	case raftpb.ConfChangeRemoveNode:
		if has && id != p.self && slices.Contains(p.voters, p.self) {
			p.voters = slices.DeleteFunc(slices.Clone(p.voters), func(v ids.Member) bool { return v == id })
		}
	}
}
