package server

import (
	"context"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/datadir"
	"quorate/internal/membership"
)

// Downgrade validates, starts or ends the downgrade of the cluster to the minor
// version below.
func (m *Member) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if err := m.barrier(ctx); err != nil {
		return nil, err
	}
	version := m.cluster.Version()
	if !version.Decided() {
		return nil, rpctypes.ErrGRPCClusterVersionUnavailable
	}
	resp := &pb.DowngradeResponse{Version: short(version)}
	set := &membershippb.DowngradeInfoSetRequest{}
	switch r.Action {
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
		target, err := m.downgradeTarget(version, r.Version)
		if err != nil || r.Action == pb.DowngradeRequest_VALIDATE {
			return resp, err
		}
		set.Enabled, set.Ver = true, target.String()
	case pb.DowngradeRequest_CANCEL:
	default:
		return nil, errUnknownMethod
	}
	if _, err := m.propose(ctx, &pb.InternalRaftRequest{DowngradeInfoSet: set}); err != nil {
		return nil, err
	}
	return resp, nil
}

func (m *Member) downgradeTarget(version membership.Version, text string) (membership.Version, error) {
	if strings.Count(text, ".") == 1 {
		text += ".0"
	}
	target, err := membership.ParseVersion(text)
	if err != nil {
		return target, rpctypes.ErrGRPCWrongDowngradeVersionFormat
	}
	target = target.MajorMinor()
	if allowed, ok := membership.DowngradeTarget(version); !ok || allowed != target {
		return target, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	}
	if m.cluster.Downgrade().Enabled {
		return target, rpctypes.ErrGRPCDowngradeInProcess
	}
	return target, nil
}

// DowngradeTarget returns the release to which the cluster is being downgraded; not
// ok if it is not, or if that is none before this one.
func (m *Member) DowngradeTarget() (target membership.Version, ok bool) {
	d := m.cluster.Downgrade()
	if !d.Enabled {
		return target, false
	}
	target, err := membership.ParseVersion(d.Target)
	return target, err == nil && target.Less(ownVersion.MajorMinor())
}

// LeaveFor writes etcd's files of a release into the directory of a member that has
// been stopped, beside its store. Working hears how far that has come.
func (c *Config) LeaveFor(ctx context.Context, target membership.Version, working func(status string)) error {
	l := c.layout()
	if l.FS == nil {
		l.FS = vfs.Default
	}
	return datadir.LeaveBeside(ctx, l, target, datadir.Options{Version: ownVersion, Logger: c.Logger, Working: working})
}

// short is the form X.Y in which clients see a cluster version.
func short(v membership.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// StorageVersion is the level of the stored data: what a member of that version
// could read. It follows the cluster's version up and down, except that a cluster
// which does not know its members yet has none.
func (m *Member) StorageVersion() string {
	if v := m.cluster.Version(); v.Decided() && v != membership.MinClusterVersion {
		return v.String()
	}
	return storageVersion
}
