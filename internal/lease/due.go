package lease

import (
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const (
	// ExpiryInterval is how often the primary looks for what is Due.
	ExpiryInterval = 500 * time.Millisecond
	expiryBatch    = 500 // leases each time
)

// Due returns what the primary has to propose now: the revokes of leases that have
// expired, and the record of what is left of long ones, nil if none is due. Whoever
// drives it first makes sure that this member still leads.
func (l *Lessor) Due(now time.Time) (revokes []int64, record *pb.InternalRaftRequest) {
	revokes = l.Expired(now, expiryBatch)
	if due := l.CheckpointsDue(now); len(due) > 0 {
		record = Record(due...)
	}
	return revokes, record
}

// Record is the request that stores checkpoints.
func Record(due ...Checkpoint) *pb.InternalRaftRequest {
	req := &pb.LeaseCheckpointRequest{}
	for _, c := range due {
		req.Checkpoints = append(req.Checkpoints, &pb.LeaseCheckpoint{ID: c.ID, Remaining_TTL: c.Remaining})
	}
	return &pb.InternalRaftRequest{LeaseCheckpoint: req}
}

// RevokeOf is the request that ends an expired lease.
func RevokeOf(id int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}}
}
