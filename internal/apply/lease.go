package apply

import (
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/digest"
	"quorate/internal/engine"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

// leases applies requests about leases.
type leases struct {
	keys    *keyspace
	cluster *membership.Cluster
	now     func() time.Time
	persist bool // see Options.PersistCheckpoints
}

// load loads the leases, and attaches the keys to them.
func (x *leases) load(eng engine.Reader, lg *zap.Logger) error {
	if err := x.keys.lessor.Load(eng); err != nil {
		return fmt.Errorf("load leases: %w", err)
	}
	orphans := 0
	x.keys.kv.Leases(func(key []byte, id lease.ID) {
		err := x.keys.lessor.Attach(id, key)
		if err == nil {
			return
		}
		// A data directory of etcd may hold such keys. They stay, as they do in etcd.
		if orphans++; orphans == 1 {
			lg.Error("failed to attach a lease", zap.Stringer("lease-id", id), zap.Binary("key", key), zap.Error(err))
		}
	})
	if orphans > 1 {
		lg.Error("further keys have leases that do not exist", zap.Int("keys", orphans-1))
	}
	return nil
}

func (x *leases) grant(b engine.Batch, r *pb.LeaseGrantRequest) Result {
	granted, err := x.keys.lessor.Grant(b, x.now(), lease.ID(r.ID), r.TTL)
	if err != nil {
		return Result{Err: leaseError(err)}
	}
	return Result{Resp: &pb.LeaseGrantResponse{ID: int64(granted.ID), TTL: granted.TTL, Header: x.keys.header()}}
}

// revoke deletes the lease's keys, in byte order, in one revision.
func (x *leases) revoke(b engine.Batch, r *pb.LeaseRevokeRequest, out *Outcome) Result {
	keys, err := x.keys.lessor.Revoke(b, lease.ID(r.ID))
	if err != nil {
		return Result{Err: leaseError(err)}
	}
	t := x.keys.kv.Begin(b)
	for _, k := range keys {
		t.DeleteRange(k, nil)
	}
	x.keys.finish(t, out)
	return Result{Resp: &pb.LeaseRevokeResponse{Header: x.keys.header()}}
}

func (x *leases) checkpoint(b engine.Batch, r *pb.LeaseCheckpointRequest) Result {
	persist := x.persist || !x.cluster.Version().Less(membership.FirstCheckpoints)
	for _, c := range r.Checkpoints {
		// What is stored depends on a flag of this member, so keep it out of the
		// digest.
		x.keys.lessor.Checkpoint(digest.Unsummed(b), lease.Checkpoint{ID: lease.ID(c.ID), Remaining: c.Remaining_TTL}, persist)
	}
	return Result{Resp: &pb.LeaseCheckpointResponse{Header: x.keys.header()}}
}

// relate moves changed keys from their old to their new lease.
func (k *keyspace) relate(changes []mvcc.Change) {
	for i := range changes {
		c := &changes[i]
		if c.PrevLease == c.Lease {
			continue
		}
		if c.PrevLease != 0 {
			k.lessor.Detach(c.PrevLease, c.Key)
		}
		if c.Lease != 0 {
			// A put with IgnoreLease may keep a lease that does not exist: a data
			// directory of etcd may hold such keys, see restore. They stay without a
			// lease.
			_ = k.lessor.Attach(c.Lease, c.Key)
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
