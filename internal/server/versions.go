package server

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.uber.org/zap"

	"quorate/internal/build"
	"quorate/internal/membership"
	"quorate/internal/proposal"
	"quorate/internal/transport/peerapi"
)

// Versions decides the cluster version as the leader, and completes downgrades.
type Versions struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	cluster *membership.Cluster
	peers   *peerapi.Client

	asking    sync.Mutex    // held by memberVersions: one query at a time
	unreached fading        // members that did not report their version; guarded by asking
	decide    chan struct{} // capacity 1: a new leader should decide the cluster version
}

// DowngradeEnabled reports, after a linearizable read barrier, whether the cluster is being
// downgraded.
func (s *Versions) DowngradeEnabled(ctx context.Context) (bool, error) {
	if err := s.replica.barrier(ctx); err != nil {
		return false, err
	}
	return s.cluster.Downgrade().Enabled, nil
}

// DowngradeTarget returns the release to which the cluster is being downgraded; ok is false
// if it is not, or if the target is not a release before this one.
func (s *Versions) DowngradeTarget() (target membership.Version, ok bool) {
	d := s.cluster.Downgrade()
	if !d.Enabled {
		return target, false
	}
	target, err := membership.ParseVersion(d.Target)
	return target, err == nil && target.Less(membership.Own.MajorMinor())
}

// Decided returns the cluster version as text, empty before it is decided.
func (s *Versions) Decided() string {
	if v := s.cluster.Version(); v.Decided() {
		return v.String()
	}
	return ""
}

// StorageVersion returns the level of the stored data: the version of a member that could
// read it. It follows the cluster version up and down; a cluster that does not know all its
// members yet has none.
func (s *Versions) StorageVersion() string {
	if v := s.cluster.Version(); v.Decided() && v != membership.MinClusterVersion {
		return v.String()
	}
	return membership.Own.MajorMinor().String() // the newest level of stored data that this server knows
}

// awaitVersion waits briefly for a new cluster to decide its version, so that the first
// clients are not rejected. It gives up after a while: the leader may be of another release.
func (s *Versions) awaitVersion() {
	ctx, cancel := context.WithTimeout(s.replica.rootCtx, versionInterval)
	defer cancel()
	for !s.Capable() && s.replica.pause(ctx, applyPoll) == nil {
	}
}

const (
	versionInterval = 4 * time.Second
	versionTimeout  = time.Second
)

// decideVersion decides, as the leader, the cluster version from the versions of the members.
func (s *Versions) decideVersion(context.Context) {
	term := s.replica.Term() // before the decision
	servers := s.memberVersions()
	current, d := s.cluster.Version(), s.cluster.Downgrade()
	if current.Decided() {
		servers.tell(s.lg)
	}
	next, change, err := membership.NextClusterVersion(current, membership.MinServerVersion(servers.texts()), d)
	if err != nil {
		s.lg.Error("Failed to monitor cluster version", zap.String("downgrade-target", d.Target), zap.Stringer("cluster-version", current),
			zap.Strings("server-versions", servers.texts()), zap.Error(err))
		return
	}
	if !change {
		return
	}
	to := next.Short()
	if current.Decided() {
		s.lg.Info("updating cluster version using v3 API", zap.String("from", current.Short()), zap.String("to", to))
	} else {
		s.lg.Info("setting up initial cluster version using v3 API", zap.String("cluster-version", to))
	}
	// At a later leader it could come after a decision of that one, when older members have
	// been started: they would refuse it, and the others not.
	_, err = s.replica.proposeIn(s.replica.rootCtx, term, &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: next.String()}})
	switch {
	case errors.Is(err, proposal.ErrNotLeading):
	case err == nil:
		s.lg.Info("cluster version is updated", zap.String("cluster-version", to))
	case ended(err):
		s.lg.Warn("aborting cluster version update; server is stopped", zap.Error(err))
	default:
		s.lg.Warn("failed to update cluster version", zap.Stringer("version", next), zap.Error(err))
	}
}

// checkDowngrade ends a downgrade, as the leader, when all members run the target release.
func (s *Versions) checkDowngrade(context.Context) {
	term, d := s.replica.Term(), s.cluster.Downgrade()
	if target, err := membership.ParseVersion(d.Target); !d.Enabled || err != nil || !s.memberVersions().have(target, s.lg) {
		return
	}
	s.lg.Info("the cluster has been downgraded", zap.String("cluster-version", d.Target))
	_, err := s.replica.proposeIn(s.replica.rootCtx, term, &pb.InternalRaftRequest{DowngradeInfoSet: &membershippb.DowngradeInfoSetRequest{}})
	if err != nil && !ended(err) && !errors.Is(err, proposal.ErrNotLeading) {
		s.lg.Warn("failed to cancel downgrade", zap.Error(err))
	}
}

// memberVersions asks every member for its server version; a member that does not answer has
// the version "".
func (s *Versions) memberVersions() serverVersions {
	s.asking.Lock()
	defer s.asking.Unlock()
	members := s.cluster.Members()
	out := make(serverVersions, len(members))
	for i, x := range members {
		out[i].id = x.ID
		if x.ID == s.replica.id {
			out[i].text = build.EtcdVersion
			continue
		}
		v, err := s.peers.Version(s.replica.rootCtx, x.PeerURLs, versionTimeout)
		if err != nil {
			if s.unreached.due(x.ID, s.cfg.Clock.Now()) {
				s.lg.Warn("failed to reach the peer URL", zap.String("address", strings.Join(x.PeerURLs, ",")),
					zap.Stringer("remote-member-id", x.ID), zap.String("remote-member-name", x.Name), zap.Error(err))
				s.lg.Warn("failed to get version", zap.Stringer("remote-member-id", x.ID), zap.String("remote-member-name", x.Name), zap.Error(err))
			}
			continue
		}
		s.unreached.forget(x.ID)
		out[i].text = v.Server
	}
	return out
}

// Capable reports whether the cluster has decided its version.
func (s *Versions) Capable() bool { return s.cluster.Version().Decided() }
