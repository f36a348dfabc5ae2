package lease

import (
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// ExpiryInterval is how often the primary calls Expired and RecordDue.
const ExpiryInterval = 500 * time.Millisecond

// RecordDue returns the request that stores the checkpoints that are due, nil if none is.
func (l *Lessor) RecordDue(now time.Time) *pb.InternalRaftRequest {
	due := l.CheckpointsDue(now)
	if len(due) == 0 {
		return nil
	}
	return Record(due...)
}

// Clearing is one attempt to clear the checkpoints of a lease.
type Clearing struct {
	of    *lease
	reign uint64 // of the lessor when it was begun
	made  uint64 // checkpoints that are before it in the log, or nowhere
}

// Clear begins to clear the checkpoints of a lease; request is what to propose. Between
// this call and the proposal no other one may be made, nor may there be any between that of
// CheckpointsDue and the proposal of what it has returned: the log must have them in the
// order of these calls.
func (l *Lessor) Clear(id ID) (c Clearing, request *pb.InternalRaftRequest) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if x := l.leases[id]; x != nil {
		c = Clearing{of: x, reign: l.reign, made: x.made}
	}
	return c, Record(Checkpoint{ID: id})
}

// Cleared records that the request of Clear was applied.
func (l *Lessor) Cleared(c Clearing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.of != nil && c.reign == l.reign {
		c.of.cleared = max(c.of.cleared, c.made)
	}
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
