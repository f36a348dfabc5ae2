package lease

import (
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const (
	// ExpiryInterval is how often the primary calls Due.
	ExpiryInterval = 500 * time.Millisecond
	expiryBatch    = 500 // leases per call
)

// Due returns what the primary has to propose now: revokes of expired leases, and a
// request that records the remaining TTL of long ones, nil if none is due. The caller
// must first make sure that this member is still the leader.
func (l *Lessor) Due(now time.Time) (revokes []ID, record *pb.InternalRaftRequest) {
	revokes = l.Expired(now, expiryBatch)
	if due := l.CheckpointsDue(now); len(due) > 0 {
		record = Record(due...)
	}
	return revokes, record
}

// Record returns the request that stores checkpoints.
func Record(due ...Checkpoint) *pb.InternalRaftRequest {
	req := &pb.LeaseCheckpointRequest{}
	for _, c := range due {
		req.Checkpoints = append(req.Checkpoints, &pb.LeaseCheckpoint{ID: int64(c.ID), Remaining_TTL: c.Remaining})
	}
	return &pb.InternalRaftRequest{LeaseCheckpoint: req}
}

// RevokeOf returns the request that revokes an expired lease.
func RevokeOf(id ID) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: int64(id)}}
}
