package server

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/apply"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

// firstEqualReads is the release from which all members decide alike about a
// transaction that writes and reads.
var firstEqualReads = membership.Version{Major: 3, Minor: 7}

// checkReads refuses, in a cluster with members of 3.5 or 3.6, a transaction with a
// read that would fail. Those members leave reads out of a transaction that another
// one has proposed, and apply its writes where all others refuse the whole: from then
// on they differ for good. Whether the branch is taken is not known yet, so a read
// in the other one counts as well.
func (m *Member) checkReads(ctx context.Context, r *pb.TxnRequest) error {
	if v := m.cluster.Version(); !v.Decided() || !v.Less(firstEqualReads) {
		return nil
	}
	current := false
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			read := op.GetRequestRange()
			if read == nil {
				continue
			}
			if _, err := m.mayRange(ctx, read); err != nil {
				return err
			}
			if read.Revision == 0 {
				continue
			}
			if !current { // this member may be behind what the client has seen elsewhere
				if err := m.barrier(ctx); err != nil {
					return err
				}
				current = true
			}
			kv := m.kv()
			switch err := apply.CheckRead(read, kv.PublishedRev(), kv.CompactRev()); {
			case errors.Is(err, mvcc.ErrFutureRev):
				return rpctypes.ErrGRPCFutureRev
			case errors.Is(err, mvcc.ErrCompacted):
				return rpctypes.ErrGRPCCompacted
			}
		}
	}
	return nil
}
