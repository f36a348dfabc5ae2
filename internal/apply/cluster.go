package apply

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
)

// ConfChangeResult is the Resp of a membership change: the members after the
// change.
type ConfChangeResult struct{ Members []membership.Member }

// ConfChange is a membership change to report to raft: with the index of its entry,
// since raft's configuration may already be that of a later one, and with node id 0
// if it was rejected.
type ConfChange struct {
	Index ids.Index
	*raftpb.ConfChange
}

// members applies membership changes, and requests of members about themselves.
type members struct {
	cluster *membership.Cluster
	legacy  *legacy
	lg      *zap.Logger
}

// change validates and applies a membership change. It is reported to
// raft in either case, with node id 0 if it was rejected.
func (m *members) change(b engine.Batch, e *Entry, out *Outcome) error {
	cc := &raftpb.ConfChange{}
	if err := proto.Unmarshal(e.Data, cc); err != nil {
		id, _ := command.ConfChangeID(e.Data)
		m.refuse(e, &raftpb.ConfChange{Id: &id}, fmt.Errorf("decode configuration change: %w", err), out)
		return nil
	}
	res := Result{ID: cc.GetId(), Reconfigured: true}
	eff, err := m.cluster.Apply(b, cc)
	if err != nil {
		m.refuse(e, cc, err, out)
		return nil
	}
	out.Members = append(out.Members, eff)
	steps := 1
	if eff.Action == membership.Removed {
		steps = 2 // the member is removed, and recorded as removed
	}
	m.legacy.state.Step(b, steps)
	res.Resp = &ConfChangeResult{Members: m.cluster.Members()}
	if err := membership.PutConfState(b, m.confState()); err != nil {
		return err
	}
	out.ConfChanges = append(out.ConfChanges, ConfChange{ids.Index(e.GetIndex()), cc})
	if e.Local {
		out.Results = append(out.Results, res)
	}
	return nil
}

// refuse answers a membership change with an error, and reports a change
// of no node to raft.
func (m *members) refuse(e *Entry, cc *raftpb.ConfChange, err error, out *Outcome) {
	m.lg.Warn("refused a configuration change", zap.Uint64("index", e.GetIndex()), zap.Stringer("member-id", ids.Member(cc.GetNodeId())), zap.Error(err))
	cc.NodeId = new(uint64(0))
	out.ConfChanges = append(out.ConfChanges, ConfChange{ids.Index(e.GetIndex()), cc})
	if e.Local {
		out.Results = append(out.Results, Result{ID: cc.GetId(), Reconfigured: true, Err: err})
	}
}

// confState derives raft's configuration from the membership.
func (m *members) confState() *raftpb.ConfState {
	cs := &raftpb.ConfState{}
	for _, x := range m.cluster.Members() {
		if x.IsLearner {
			cs.Learners = append(cs.Learners, uint64(x.ID))
		} else {
			cs.Voters = append(cs.Voters, uint64(x.ID))
		}
	}
	return cs
}

// request applies requests in which members publish their attributes
// and versions. Alarms do not block them.
func (m *members) request(b engine.Batch, r *pb.InternalRaftRequest, out *Outcome) Result {
	switch {
	case r.ClusterVersionSet != nil:
		v, err := membership.ParseVersion(r.ClusterVersionSet.GetVer())
		if err != nil {
			return Result{Err: err}
		}
		if err := m.cluster.SetVersion(b, v); err != nil {
			// The leader raises the version when all members support it. An entry that breaks
			// this rule must not stop the members that do not support the version.
			m.lg.Error("refused a cluster version", zap.Stringer("version", v), zap.Error(err))
			return Result{Err: err}
		}
		m.legacy.state.Step(b, 1)
		out.VersionSet = true
	case r.ClusterMemberAttrSet != nil:
		a := r.ClusterMemberAttrSet
		err := m.cluster.SetAttributes(b, ids.Member(a.GetMember_ID()), a.GetMemberAttributes().GetName(), a.GetMemberAttributes().GetClientUrls())
		if err != nil {
			return Result{Err: err}
		}
		if !m.cluster.IsRemoved(ids.Member(a.GetMember_ID())) {
			m.legacy.state.Step(b, 1)
		}
	case r.DowngradeInfoSet != nil:
		d := membership.Downgrade{Enabled: r.DowngradeInfoSet.GetEnabled()}
		if d.Enabled {
			d.Target = r.DowngradeInfoSet.GetVer()
		}
		if err := m.cluster.SetDowngrade(b, d); err != nil {
			return Result{Err: err}
		}
	}
	return Result{Resp: &pb.EmptyResponse{}}
}
