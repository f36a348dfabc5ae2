package apply

import (
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/digest"
	"quorate/internal/engine"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

func (m *Machine) leaseGrant(b engine.Batch, r *pb.LeaseGrantRequest) Result {
	granted, err := m.lessor.Grant(b, m.opts.Now(), r.ID, r.TTL)
	if err != nil {
		return Result{Err: leaseError(err)}
	}
	return Result{Resp: &pb.LeaseGrantResponse{ID: granted.ID, TTL: granted.TTL, Header: m.header()}}
}

// leaseRevoke deletes the lease's keys, in byte order, in one revision.
func (m *Machine) leaseRevoke(b engine.Batch, r *pb.LeaseRevokeRequest, out *Outcome) Result {
	keys, err := m.lessor.Revoke(b, r.ID)
	if err != nil {
		return Result{Err: leaseError(err)}
	}
	t := m.kv.Begin(b)
	for _, k := range keys {
		t.DeleteRange(k, nil)
	}
	m.finish(t, out)
	return Result{Resp: &pb.LeaseRevokeResponse{Header: m.header()}}
}

func (m *Machine) leaseCheckpoint(b engine.Batch, r *pb.LeaseCheckpointRequest) Result {
	persist := m.opts.PersistCheckpoints || !m.cluster.Version().Less(membership.FirstCheckpoints)
	for _, c := range r.Checkpoints {
		// What is stored depends on a flag of this member, so keep it out of the
		// digest.
		m.lessor.Checkpoint(digest.Unsummed(b), lease.Checkpoint{ID: c.ID, Remaining: c.Remaining_TTL}, persist)
	}
	return Result{Resp: &pb.LeaseCheckpointResponse{Header: m.header()}}
}

// relate moves changed keys from their old to their new lease.
func (m *Machine) relate(changes []mvcc.Change) {
	for i := range changes {
		c := &changes[i]
		if c.PrevLease == c.Lease {
			continue
		}
		if c.PrevLease != 0 {
			m.lessor.Detach(c.PrevLease, c.Key)
		}
		if c.Lease != 0 {
			// A put with IgnoreLease may keep a lease that does not exist: a data
			// directory of etcd may hold such keys, see restore. They stay without a
			// lease.
			_ = m.lessor.Attach(c.Lease, c.Key)
		}
	}
}

func leaseError(err error) error {
	switch {
	case errors.Is(err, lease.ErrLeaseNotFound):
		return rpctypes.ErrGRPCLeaseNotFound
	case errors.Is(err, lease.ErrLeaseExists):
		return rpctypes.ErrGRPCLeaseExist
	case errors.Is(err, lease.ErrLeaseTTLTooLarge):
		return rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	return err
}
