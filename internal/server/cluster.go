package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
)

// MemberList returns the members sorted by id.
func (m *Member) MemberList(ctx context.Context, linearizable bool) ([]*pb.Member, error) {
	if linearizable {
		if err := m.barrier(ctx); err != nil {
			return nil, err
		}
	}
	if err := m.RequireUser(ctx); err != nil {
		return nil, err
	}
	return apiMembers(m.cluster.Members()), nil
}

func apiMembers(ms []membership.Member) []*pb.Member {
	out := make([]*pb.Member, len(ms))
	for i, x := range ms {
		out[i] = &pb.Member{ID: x.ID, Name: x.Name, PeerURLs: x.PeerURLs, ClientURLs: x.ClientURLs, IsLearner: x.IsLearner}
	}
	return out
}

// MemberAdd adds a voter or learner; it has no name before it starts.
func (m *Member) MemberAdd(ctx context.Context, peerURLs []string, learner bool) (*pb.Member, []*pb.Member, error) {
	if err := m.RequireRoot(ctx); err != nil {
		return nil, nil, err
	}
	x := membership.NewMember(peerURLs, learner, m.cfg.Clock.Now())
	cc, err := membership.AddChange(x)
	if err != nil {
		return nil, nil, err
	}
	if err := m.mayChange(cc, nil); err != nil {
		return nil, nil, mapMembership(err)
	}
	if err := membership.CheckURLs(m.cluster.Members(), x.ID, peerURLs); err != nil {
		return nil, nil, mapMembership(err)
	}
	all, err := m.reconfigure(ctx, cc)
	if err != nil {
		return nil, nil, err
	}
	return apiMembers([]membership.Member{x})[0], all, nil
}

// MemberRemove removes a member for good.
func (m *Member) MemberRemove(ctx context.Context, id uint64) ([]*pb.Member, error) {
	if err := m.RequireRoot(ctx); err != nil {
		return nil, err
	}
	if _, ok := m.cluster.Member(id); !ok {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	cc := membership.RemoveChange(id)
	if err := m.mayChange(cc, nil); err != nil {
		return nil, mapMembership(err)
	}
	all, err := m.reconfigure(ctx, cc)
	if err != nil && id == m.id && m.learnedRemoval(err) {
		// The others have cut it off before it heard of its removal through the log.
		return slices.DeleteFunc(apiMembers(m.cluster.Members()), func(x *pb.Member) bool { return x.ID == id }), nil
	}
	return all, err
}

// learnedRemoval reports whether a request has failed because this member was
// told that it is removed.
func (m *Member) learnedRemoval(err error) bool {
	if !errors.Is(err, errStopped) {
		return false
	}
	select {
	case <-m.failed:
		return errors.Is(m.failErr, ErrRemoved)
	case <-m.stop:
		return errors.Is(m.Err(), ErrRemoved)
	}
}

// MemberUpdate gives a member new peer URLs.
func (m *Member) MemberUpdate(ctx context.Context, id uint64, peerURLs []string) ([]*pb.Member, error) {
	if err := m.RequireRoot(ctx); err != nil {
		return nil, err
	}
	if id == 0 {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	if _, ok := m.cluster.Member(id); ok {
		if err := membership.CheckURLs(m.cluster.Members(), id, peerURLs); err != nil {
			return nil, mapMembership(err)
		}
	}
	cc, err := membership.UpdateChange(id, peerURLs)
	if err != nil {
		return nil, err
	}
	return m.reconfigure(ctx, cc)
}

// MemberPromote makes a voter of a learner that has caught up. Only the leader
// can tell; another member forwards the request to it.
func (m *Member) MemberPromote(ctx context.Context, id uint64) ([]*pb.Member, error) {
	if err := m.RequireRoot(ctx); err != nil {
		return nil, err
	}
	token, _ := tokenOf(ctx)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.requestTimeout())
	defer cancel()
	for {
		if m.isLeader() {
			all, err := m.PromoteHere(ctx, id)
			if err != nil {
				metrics.ServerLearnerPromoteFailures.WithLabelValues(err.Error()).Inc()
				return nil, err
			}
			metrics.ServerLearnerPromoteSuccesses.Inc()
			return all, nil
		}
		if urls := m.leaderURLs(); urls != nil {
			ms, err := m.peers.Promote(ctx, urls[0], id, token)
			if err == nil {
				return apiMembers(ms), nil
			}
			if mapped := mapMembership(err); mapped != err {
				return nil, mapped
			}
		}
		if err := m.pause(ctx, forwardPause); err != nil {
			return nil, m.leaderless(err)
		}
	}
}

// PromoteHere promotes as the leader.
func (m *Member) PromoteHere(ctx context.Context, id uint64) ([]*pb.Member, error) {
	if err := m.RequireRoot(ctx); err != nil {
		return nil, err
	}
	x, ok := m.cluster.Member(id)
	if !ok {
		// A follower may have applied the addition, and answered for it, before this leader has.
		if err := m.barrier(ctx); err != nil {
			return nil, err
		}
		if x, ok = m.cluster.Member(id); !ok {
			return nil, rpctypes.ErrGRPCMemberNotFound
		}
	}
	if !x.IsLearner {
		return nil, rpctypes.ErrGRPCMemberNotLearner
	}
	match := m.progress(ctx)
	if match == nil {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	cc, err := membership.PromoteChange(id)
	if err != nil {
		return nil, err
	}
	inSync := func(id uint64) bool { return membership.LearnerInSync(match[m.id], match[id]) }
	if err := m.mayChange(cc, inSync); err != nil {
		return nil, mapMembership(err)
	}
	return m.reconfigure(ctx, cc)
}

// mayChange decides whether a change may be proposed as the membership is now. The core
// of the leader asks again (gate.go).
func (m *Member) mayChange(cc *raftpb.ConfChange, inSync func(id uint64) bool) error {
	err := m.cluster.MayPropose(cc, membership.Rules{Strict: m.cfg.StrictReconfig, Connected: m.connected, InSync: inSync,
		Reachable: func(id uint64) bool { return id == m.id || !m.tr.ActiveSince(id).IsZero() }})
	if errors.Is(err, membership.ErrNotEnoughStarted) || errors.Is(err, membership.ErrUnhealthy) {
		m.tellRejected(cc, err)
	}
	return err
}

// tellRejected logs that the strict check refuses a change, in etcd's words.
func (m *Member) tellRejected(cc *raftpb.ConfChange, err error) {
	what, reason := "add", "not enough healthy members"
	member := zap.String("requested-member-remove-id", membership.FormatID(cc.GetNodeId()))
	unhealthy := errors.Is(err, membership.ErrUnhealthy)
	switch cc.GetType() {
	case raftpb.ConfChangeRemoveNode:
		if what = "remove"; unhealthy {
			reason = "local member has not been connected to all peers, reconfigure breaks active quorum"
			member = zap.String("requested-member-remove", membership.FormatID(cc.GetNodeId()))
		}
	default:
		if _, known := m.cluster.Member(cc.GetNodeId()); known {
			what = "promote"
		} else if member = zap.String("requested-member-add", string(cc.Context)); unhealthy {
			reason = "local member has not been connected to majority peers, reconfigure breaks active quorum"
		}
	}
	m.fewLines.Warn("rejecting member "+what+" request; "+reason, m.localID(), member, zap.Error(err))
}

// connected reports whether a member has been reachable for a while.
func (m *Member) connected(id uint64) bool {
	if id == m.id {
		return true
	}
	since := m.tr.ActiveSince(id)
	return !since.IsZero() && m.cfg.Clock.Now().Sub(since) > 5*time.Second
}

// reconfigure proposes a membership change and returns the members after it.
func (m *Member) reconfigure(ctx context.Context, cc *raftpb.ConfChange) ([]*pb.Member, error) {
	id := m.ids.Next()
	cc.Id = new(id)
	data, err := proto.Marshal(cc)
	if err != nil {
		return nil, fmt.Errorf("encode configuration change: %w", err)
	}
	res, err := m.submit(ctx, &proposal.Pending{ID: id, Data: data, ConfChange: true,
		// A late copy of an addition, removal or promotion is refused; one of an
		// update would undo a later update.
		Repeat: cc.GetType() != raftpb.ConfChangeUpdateNode,
		Allowed: func() error {
			if m.isLeader() {
				return nil // its core is asked
			}
			return m.mayChange(cc, nil)
		}})
	if err != nil {
		return nil, mapMembership(err)
	}
	return apiMembers(res.Resp.(*apply.ConfChangeResult).Members), nil
}

func mapMembership(err error) error {
	for sentinel, mapped := range membershipErrors {
		if errors.Is(err, sentinel) {
			return mapped
		}
	}
	return err
}

var membershipErrors = map[error]error{
	membership.ErrIDRemoved:        rpctypes.ErrGRPCMemberNotFound,
	membership.ErrIDNotFound:       rpctypes.ErrGRPCMemberNotFound,
	membership.ErrIDExists:         rpctypes.ErrGRPCMemberExist,
	membership.ErrPeerURLExists:    rpctypes.ErrGRPCPeerURLExist,
	membership.ErrMemberNotLearner: rpctypes.ErrGRPCMemberNotLearner,
	membership.ErrTooManyLearners:  rpctypes.ErrGRPCTooManyLearners,
	membership.ErrLastVoter:        errNotEnoughStarted,
	membership.ErrLearnerNotReady:  rpctypes.ErrGRPCLearnerNotReady,
	membership.ErrUnhealthy:        rpctypes.ErrGRPCUnhealthy,
	// etcd sends this one as code Unknown, without the code that it declares.
	membership.ErrNotEnoughStarted: errNotEnoughStarted,
}

var errNotEnoughStarted = errors.New("etcdserver: re-configuration failed due to not enough started members")

// announce tells the cluster this member's name and client URLs, again and
// again until that is applied, and then opens the doors to clients.
func (m *Member) announce() {
	attr := &membershippb.ClusterMemberAttrSetRequest{Member_ID: m.id,
		MemberAttributes: &membershippb.Attributes{Name: m.cfg.Name, ClientUrls: m.cfg.ClientURLs}}
	for {
		ctx, cancel := context.WithTimeout(m.rootCtx, m.cfg.requestTimeout())
		_, err := m.proposeAgain(ctx, &pb.InternalRaftRequest{ClusterMemberAttrSet: attr})
		cancel()
		switch {
		case err == nil:
			m.lg.Info("published local member to cluster through raft", m.localID(), zap.String("local-member-attributes", fmt.Sprintf("{Name:%s ClientURLs:%v}", m.cfg.Name, m.cfg.ClientURLs)),
				zap.Duration("publish-timeout", m.cfg.requestTimeout()), zap.String("name", m.cfg.Name), zap.Strings("client-urls", m.cfg.ClientURLs),
				zap.String("cluster-id", membership.FormatID(m.cluster.ID())))
			m.awaitVersion()
			close(m.readyc)
			return
		case m.rootCtx.Err() != nil:
			return
		}
		m.lg.Warn("failed to publish local member to cluster through raft; it needs a quorum of members",
			zap.String("local-member-id", membership.FormatID(m.id)), zap.Error(err))
		if m.pause(m.rootCtx, 100*time.Millisecond) != nil {
			return
		}
	}
}

// awaitVersion gives a new cluster the moment that it takes to decide its
// version, so that the first clients are not turned away. It does not insist:
// the leader may be of another release.
func (m *Member) awaitVersion() {
	ctx, cancel := context.WithTimeout(m.rootCtx, versionInterval)
	defer cancel()
	for !m.Capable() && m.pause(ctx, applyPoll) == nil {
	}
}

const (
	versionInterval = 4 * time.Second
	versionTimeout  = time.Second
)

// watchVersions lets the leader decide the version of the cluster from those of
// its members, and end a downgrade that is complete.
func (m *Member) watchVersions() {
	every := m.cfg.VersionInterval
	if every <= 0 {
		every = versionInterval
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-m.decide: // a new leader has committed in its term
		case <-m.rootCtx.Done():
			return
		}
		if m.isLeader() {
			m.decideVersion()
		}
	}
}

func (m *Member) decideVersion() {
	servers := m.memberVersions()
	d := m.cluster.Downgrade()
	next, change, err := membership.NextClusterVersion(m.cluster.Version(), membership.MinServerVersion(servers), d)
	if err != nil {
		m.lg.Warn("cannot decide the cluster version", zap.Strings("server-versions", servers), zap.Error(err))
		return
	}
	if change {
		to := fmt.Sprintf("%d.%d", next.Major, next.Minor)
		if from := m.cluster.Version(); from.Decided() {
			m.lg.Info("updating cluster version using v3 API", zap.String("from", fmt.Sprintf("%d.%d", from.Major, from.Minor)), zap.String("to", to))
		} else {
			m.lg.Info("setting up initial cluster version using v3 API", zap.String("cluster-version", to))
		}
		_, err := m.propose(m.rootCtx, &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: next.String()}})
		if err != nil && !ended(err) {
			m.lg.Warn("failed to set the cluster version", zap.Stringer("version", next), zap.Error(err))
		}
		if err == nil {
			m.lg.Info("cluster version is updated", zap.String("cluster-version", to))
		}
	}
	if target, err := membership.ParseVersion(d.Target); d.Enabled && err == nil && membership.DowngradeDone(servers, target) {
		_, err := m.propose(m.rootCtx, &pb.InternalRaftRequest{DowngradeInfoSet: &membershippb.DowngradeInfoSetRequest{}})
		if err != nil && !ended(err) {
			m.lg.Warn("failed to end the downgrade", zap.Error(err))
		}
	}
}

// memberVersions asks every member for its server version; one that does not
// answer has the version "".
func (m *Member) memberVersions() []string {
	members := m.cluster.Members()
	out := make([]string, len(members))
	for i, x := range members {
		if x.ID == m.id {
			out[i] = Version
			continue
		}
		v, err := m.peers.Version(m.rootCtx, x.PeerURLs, versionTimeout)
		if err != nil {
			if m.unreached.due(x.ID, time.Now()) {
				m.lg.Warn("failed to reach the peer URL", zap.String("address", strings.Join(x.PeerURLs, ",")),
					zap.String("remote-member-id", membership.FormatID(x.ID)), zap.String("remote-member-name", x.Name), zap.Error(err))
				m.lg.Warn("failed to get version", zap.String("remote-member-id", membership.FormatID(x.ID)), zap.String("remote-member-name", x.Name), zap.Error(err))
			}
			continue
		}
		m.unreached.forget(x.ID)
		out[i] = v.Server
	}
	return out
}
