package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.uber.org/zap"

	"quorate/internal/membership"
	"quorate/internal/transport"
)

// Versions decides the version of the cluster as its leader, and follows a downgrade.
type Versions struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	cluster *membership.Cluster
	peers   *transport.Client

	unreached fading        // members that did not tell their version; of the goroutine that asks
	decide    chan struct{} // capacity 1: a new leader should decide the cluster version
}

// DowngradeEnabled reports, after a linearizable read barrier, whether the cluster is
// being downgraded.
func (v *Versions) DowngradeEnabled(ctx context.Context) (bool, error) {
	if err := v.replica.barrier(ctx); err != nil {
		return false, err
	}
	return v.cluster.Downgrade().Enabled, nil
}

// DowngradeTarget returns the release to which the cluster is being downgraded; not
// ok if it is not, or if that is none before this one.
func (v *Versions) DowngradeTarget() (target membership.Version, ok bool) {
	d := v.cluster.Downgrade()
	if !d.Enabled {
		return target, false
	}
	target, err := membership.ParseVersion(d.Target)
	return target, err == nil && target.Less(ownVersion.MajorMinor())
}

// StorageVersion is the level of the stored data: what a member of that version
// could read. It follows the cluster's version up and down, except that a cluster
// which does not know its members yet has none.
func (m *Versions) StorageVersion() string {
	if v := m.cluster.Version(); v.Decided() && v != membership.MinClusterVersion {
		return v.String()
	}
	return storageVersion
}

// awaitVersion gives a new cluster the moment that it takes to decide its
// version, so that the first clients are not turned away. It does not insist:
// the leader may be of another release.
func (v *Versions) awaitVersion() {
	ctx, cancel := context.WithTimeout(v.replica.rootCtx, versionInterval)
	defer cancel()
	for !v.Capable() && v.replica.pause(ctx, applyPoll) == nil {
	}
}

const (
	versionInterval = 4 * time.Second
	versionTimeout  = time.Second
)

// decideVersion decides, as the leader, the version of the cluster from those of its
// members, and ends a downgrade that is complete.
func (v *Versions) decideVersion(context.Context) {
	servers := v.memberVersions()
	d := v.cluster.Downgrade()
	next, change, err := membership.NextClusterVersion(v.cluster.Version(), membership.MinServerVersion(servers), d)
	if err != nil {
		v.lg.Warn("cannot decide the cluster version", zap.Strings("server-versions", servers), zap.Error(err))
		return
	}
	if change {
		to := fmt.Sprintf("%d.%d", next.Major, next.Minor)
		if from := v.cluster.Version(); from.Decided() {
			v.lg.Info("updating cluster version using v3 API", zap.String("from", fmt.Sprintf("%d.%d", from.Major, from.Minor)), zap.String("to", to))
		} else {
			v.lg.Info("setting up initial cluster version using v3 API", zap.String("cluster-version", to))
		}
		_, err := v.replica.propose(v.replica.rootCtx, &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: next.String()}})
		if err != nil && !ended(err) {
			v.lg.Warn("failed to set the cluster version", zap.Stringer("version", next), zap.Error(err))
		}
		if err == nil {
			v.lg.Info("cluster version is updated", zap.String("cluster-version", to))
		}
	}
	if target, err := membership.ParseVersion(d.Target); d.Enabled && err == nil && membership.DowngradeDone(servers, target) {
		_, err := v.replica.propose(v.replica.rootCtx, &pb.InternalRaftRequest{DowngradeInfoSet: &membershippb.DowngradeInfoSetRequest{}})
		if err != nil && !ended(err) {
			v.lg.Warn("failed to end the downgrade", zap.Error(err))
		}
	}
}

// memberVersions asks every member for its server version; one that does not
// answer has the version "".
func (m *Versions) memberVersions() []string {
	members := m.cluster.Members()
	out := make([]string, len(members))
	for i, x := range members {
		if x.ID == m.replica.id {
			out[i] = Version
			continue
		}
		v, err := m.peers.Version(m.replica.rootCtx, x.PeerURLs, versionTimeout)
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

// Capable reports whether the cluster has decided its version.
func (v *Versions) Capable() bool { return v.cluster.Version().Decided() }
