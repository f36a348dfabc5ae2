package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/transport"
	"quorate/internal/transport/peerapi"
)

// Members serves the membership, and publishes this member's name to the cluster.
type Members struct {
	cfg      *Config
	lg       *zap.Logger
	replica  *localReplica
	Access   *Access
	cluster  *membership.Cluster
	leaders  *leaders
	peers    *peerapi.Client
	tr       *transport.Transport
	driver   *driver
	slow     *slowLog
	Versions *Versions

	readyc chan struct{}
}

// MemberList returns the members sorted by id.
func (c *Members) MemberList(ctx context.Context, linearizable bool) ([]*pb.Member, error) {
	if linearizable {
		if err := c.replica.barrier(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.Access.RequireUser(ctx); err != nil {
		return nil, err
	}
	return apiMembers(c.cluster.Members()), nil
}

func apiMembers(ms []membership.Member) []*pb.Member {
	out := make([]*pb.Member, len(ms))
	for i, x := range ms {
		out[i] = &pb.Member{ID: uint64(x.ID), Name: x.Name, PeerURLs: x.PeerURLs, ClientURLs: x.ClientURLs, IsLearner: x.IsLearner}
	}
	return out
}

// MemberAdd adds a voter or learner, which has no name before it starts.
func (c *Members) MemberAdd(ctx context.Context, peerURLs []string, learner bool) (*pb.Member, []*pb.Member, error) {
	if err := c.Access.RequireRoot(ctx); err != nil {
		return nil, nil, err
	}
	x := membership.NewMember(peerURLs, learner, c.cfg.Clock.Now())
	cc, err := membership.AddChange(x)
	if err != nil {
		return nil, nil, err
	}
	if err := c.mayChange(cc, nil); err != nil {
		return nil, nil, mapMembership(err)
	}
	if err := membership.CheckURLs(c.cluster.Members(), x.ID, peerURLs); err != nil {
		return nil, nil, mapMembership(err)
	}
	all, err := c.reconfigure(ctx, cc)
	if err != nil {
		return nil, nil, err
	}
	return apiMembers([]membership.Member{x})[0], all, nil
}

// MemberRemove removes a member.
func (c *Members) MemberRemove(ctx context.Context, id ids.Member) ([]*pb.Member, error) {
	if err := c.Access.RequireRoot(ctx); err != nil {
		return nil, err
	}
	if _, ok := c.cluster.Member(id); !ok {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	cc := membership.RemoveChange(id)
	if err := c.mayChange(cc, nil); err != nil {
		return nil, mapMembership(err)
	}
	all, err := c.reconfigure(ctx, cc)
	if err != nil && id == c.replica.id && c.learnedRemoval(err) {
		// The others disconnected this member before its own removal reached it through the log.
		return slices.DeleteFunc(apiMembers(c.cluster.Members()), func(x *pb.Member) bool { return ids.Member(x.ID) == id }), nil
	}
	return all, err
}

// learnedRemoval reports whether a request has failed because this member was told that it
// is removed.
func (c *Members) learnedRemoval(err error) bool {
	if !errors.Is(err, errStopped) {
		return false
	}
	select {
	case <-c.replica.failed:
		return errors.Is(c.replica.failErr, ErrRemoved)
	case <-c.replica.stop:
		return errors.Is(c.replica.Err(), ErrRemoved)
	}
}

// MemberUpdate replaces a member's peer URLs.
func (c *Members) MemberUpdate(ctx context.Context, id ids.Member, peerURLs []string) ([]*pb.Member, error) {
	if err := c.Access.RequireRoot(ctx); err != nil {
		return nil, err
	}
	if id == 0 {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	if _, ok := c.cluster.Member(id); ok {
		if err := membership.CheckURLs(c.cluster.Members(), id, peerURLs); err != nil {
			return nil, mapMembership(err)
		}
	}
	cc, err := membership.UpdateChange(id, peerURLs)
	if err != nil {
		return nil, err
	}
	return c.reconfigure(ctx, cc)
}

// MemberPromote makes a learner that has caught up a voter. Only the leader knows whether
// it has; other members forward the request.
func (c *Members) MemberPromote(ctx context.Context, id ids.Member) ([]*pb.Member, error) {
	if err := c.Access.RequireRoot(ctx); err != nil {
		return nil, err
	}
	token, _ := tokenOf(ctx)
	ctx, cancel := context.WithTimeout(ctx, c.cfg.requestTimeout())
	defer cancel()
	for {
		if c.replica.isLeader() {
			all, err := c.PromoteHere(ctx, id)
			if err != nil {
				metrics.ServerLearnerPromoteFailures.WithLabelValues(err.Error()).Inc()
				return nil, err
			}
			metrics.ServerLearnerPromoteSuccesses.Inc()
			return all, nil
		}
		if urls := c.leaders.leaderURLs(); urls != nil {
			ms, err := c.peers.Promote(ctx, urls[0], id, token)
			if err == nil {
				return apiMembers(ms), nil
			}
			if mapped := mapMembership(err); mapped != err {
				return nil, mapped
			}
		}
		if err := c.replica.pause(ctx, forwardPause); err != nil {
			return nil, c.leaders.leaderless(err)
		}
	}
}

// PromoteHere promotes as the leader.
func (c *Members) PromoteHere(ctx context.Context, id ids.Member) ([]*pb.Member, error) {
	if err := c.Access.RequireRoot(ctx); err != nil {
		return nil, err
	}
	x, ok := c.cluster.Member(id)
	if !ok {
		// A follower may have applied the addition, and acknowledged it, before this leader has.
		if err := c.replica.barrier(ctx); err != nil {
			return nil, err
		}
		if x, ok = c.cluster.Member(id); !ok {
			return nil, rpctypes.ErrGRPCMemberNotFound
		}
	}
	if !x.IsLearner {
		return nil, rpctypes.ErrGRPCMemberNotLearner
	}
	match := c.driver.progress(ctx)
	if match == nil {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	cc, err := membership.PromoteChange(id)
	if err != nil {
		return nil, err
	}
	inSync := func(id ids.Member) bool {
		return membership.LearnerInSync(ids.Index(match[c.replica.id]), ids.Index(match[id]))
	}
	if err := c.mayChange(cc, inSync); err != nil {
		if errors.Is(err, membership.ErrLearnerNotReady) {
			c.slow.fewLines.Error("rejecting promote learner: learner is not ready", c.replica.localID(), zap.Stringer("learner-id", id),
				zap.Float64("learner-ready-percent", float64(match[id])/float64(match[c.replica.id])), zap.Float64("ready-percent-threshold", membership.LearnerReady))
		}
		return nil, mapMembership(err)
	}
	return c.reconfigure(ctx, cc)
}

// mayChange decides whether a change may be proposed with the current membership, and logs
// rejections by the strict check. The core of the leader checks again.
func (c *Members) mayChange(cc *raftpb.ConfChange, inSync func(id ids.Member) bool) error {
	err := c.judge(cc, inSync)
	if errors.Is(err, membership.ErrNotEnoughStarted) || errors.Is(err, membership.ErrUnhealthy) {
		c.tellRejected(cc, err)
	}
	return err
}

// gate is mayChange for the core. It does not log young connections, about which the core
// asks again and again.
func (c *Members) gate(cc *raftpb.ConfChange, inSync func(id ids.Member) bool) error {
	err := c.judge(cc, inSync)
	if errors.Is(err, membership.ErrNotEnoughStarted) {
		c.tellRejected(cc, err)
	}
	return err
}

func (c *Members) judge(cc *raftpb.ConfChange, inSync func(id ids.Member) bool) error {
	return c.cluster.MayPropose(cc, membership.Rules{Strict: c.cfg.StrictReconfig, Connected: c.connected, InSync: inSync,
		Reachable: func(id ids.Member) bool { return id == c.replica.id || !c.tr.ActiveSince(id).IsZero() }})
}

// tellRejected logs that the strict check rejects a change, in etcd's words.
func (c *Members) tellRejected(cc *raftpb.ConfChange, err error) {
	what, reason := "add", "not enough healthy members"
	member := zap.Stringer("requested-member-remove-id", ids.Member(cc.GetNodeId()))
	active, unhealthy := zap.Skip(), errors.Is(err, membership.ErrUnhealthy)
	switch cc.GetType() {
	case raftpb.ConfChangeRemoveNode:
		if what = "remove"; unhealthy {
			reason = "local member has not been connected to all peers, reconfigure breaks active quorum"
			member = zap.Stringer("requested-member-remove", ids.Member(cc.GetNodeId()))
			active = zap.Int("active-peers", c.activeVoters())
		}
	default:
		if _, known := c.cluster.Member(ids.Member(cc.GetNodeId())); known {
			what = "promote"
		} else if member = zap.String("requested-member-add", string(cc.Context)); unhealthy {
			reason = "local member has not been connected to majority peers, reconfigure breaks active quorum"
		}
	}
	c.slow.fewLines.Warn("rejecting member "+what+" request; "+reason, c.replica.localID(), member, active, zap.Error(err))
}

// activeVoters counts the voters that have been reachable for a while, including this member.
func (c *Members) activeVoters() int {
	n := 0
	for _, id := range c.cluster.VoterIDs() {
		if c.connected(id) {
			n++
		}
	}
	return n
}

// connected reports whether a member has been reachable for a while.
func (c *Members) connected(id ids.Member) bool {
	if id == c.replica.id {
		return true
	}
	since := c.tr.ActiveSince(id)
	return !since.IsZero() && c.cfg.Clock.Now().Sub(since) > 5*time.Second
}

// reconfigure proposes a membership change and returns the members after it.
func (c *Members) reconfigure(ctx context.Context, cc *raftpb.ConfChange) ([]*pb.Member, error) {
	id := c.replica.ids.Next()
	cc.Id = new(id)
	data, err := proto.Marshal(cc)
	if err != nil {
		return nil, fmt.Errorf("encode configuration change: %w", err)
	}
	res, err := c.replica.submit(ctx, &proposal.Pending{ID: id, Data: data, ConfChange: true,
		// A late copy of an addition, removal or promotion is rejected; one of an update
		// would undo a later update.
		Repeat: cc.GetType() != raftpb.ConfChangeUpdateNode,
		Allowed: func() error {
			if c.replica.isLeader() {
				return nil // the leader's core is asked
			}
			return c.mayChange(cc, nil)
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
	// etcd sends this one with code Unknown, without the code that it declares.
	membership.ErrNotEnoughStarted: errNotEnoughStarted,
}

var errNotEnoughStarted = errors.New("etcdserver: re-configuration failed due to not enough started members")

// announce publishes this member's name and client URLs to the cluster, retries until the
// entry is applied, and then starts serving clients.
func (c *Members) announce(context.Context) {
	attr := &membershippb.ClusterMemberAttrSetRequest{Member_ID: uint64(c.replica.id),
		MemberAttributes: &membershippb.Attributes{Name: c.cfg.Name, ClientUrls: c.cfg.ClientURLs}}
	what := []zap.Field{c.replica.localID(), zap.String("local-member-attributes", fmt.Sprintf("{Name:%s ClientURLs:%v}", c.cfg.Name, c.cfg.ClientURLs)),
		zap.Duration("publish-timeout", c.cfg.requestTimeout())}
	for {
		ctx, cancel := context.WithTimeout(c.replica.rootCtx, c.cfg.requestTimeout())
		_, err := c.replica.proposeAgain(ctx, &pb.InternalRaftRequest{ClusterMemberAttrSet: attr})
		cancel()
		switch {
		case err == nil:
			c.lg.Info("published local member to cluster through raft", append(what, zap.String("name", c.cfg.Name), zap.Strings("client-urls", c.cfg.ClientURLs),
				zap.Stringer("cluster-id", c.cluster.ID()))...)
			c.Versions.awaitVersion()
			close(c.readyc)
			return
		case c.replica.rootCtx.Err() != nil:
			c.lg.Warn("stopped publish because server is stopping", what...)
			return
		}
		c.lg.Warn("failed to publish local member to cluster through raft", append(what, zap.Error(err), zap.String("hint", "it needs a quorum of members"))...)
		if c.replica.pause(c.replica.rootCtx, 100*time.Millisecond) != nil {
			return
		}
	}
}
