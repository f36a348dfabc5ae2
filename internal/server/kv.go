package server

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

// KV serves keys. Writes go through the log. Reads go to the store, behind a barrier
// unless they are serializable.
type KV struct {
	cfg     *Config
	replica *localReplica
	Access  *Access
	cluster *membership.Cluster
	lessor  *lease.Lessor
	slow    *slowLog
}

// Range reads keys: behind a barrier, or from the local state if the request is
// serializable.
func (k *KV) Range(ctx context.Context, r *pb.RangeRequest) (*mvcc.RangeResult, error) {
	began := k.cfg.Clock.Now()
	start := began
	if !r.Serializable {
		if err := k.replica.barrier(ctx); err != nil {
			observeRequest(requestRange, false, k.cfg.Clock.Now().Sub(began))
			return nil, err
		}
		start = k.cfg.Clock.Now()
	}
	who, err := k.Access.mayRange(ctx, r)
	if err != nil {
		observeRequest(requestRange, false, k.cfg.Clock.Now().Sub(began))
		return nil, err
	}
	v := k.replica.kv().View()
	res, err := v.Range(r)
	v.Close()
	end := k.cfg.Clock.Now()
	observeRange(err == nil, end.Sub(start))
	if changed := k.Access.unchanged(who); changed != nil {
		res, err = nil, changed
	}
	took := end.Sub(began)
	observeRequest(requestRange, err == nil, took)
	if took > traceThreshold || k.slow.isSlow(took) {
		var got *mvcc.Listed
		if res != nil {
			got = &mvcc.Listed{Revision: res.Revision, Keys: int64(len(res.KVs))}
			for _, kv := range res.KVs {
				got.Bytes += int64(len(kv))
			}
		}
		k.slow.rangeTook(r, got, err, began, start, end)
	}
	return res, err
}

// List reads like Range, but reads most records of a long answer while it is being sent.
func (k *KV) List(ctx context.Context, r *pb.RangeRequest) (mvcc.Reading, error) {
	return openList(&list{k: k, ctx: ctx, req: r}, func(s *mvcc.Store) (*mvcc.List, error) { return s.List(r) })
}

// RangeStream is List for an answer in several messages. The first contains ten keys;
// later ones grow and shrink to stay below the request limit.
func (k *KV) RangeStream(ctx context.Context, r *pb.RangeRequest) (mvcc.Reading, error) {
	return openList(&list{k: k, ctx: ctx, req: r, messages: true}, func(s *mvcc.Store) (*mvcc.List, error) { return s.ListMessages(r, k.cfg.MaxRequestBytes) })
}

func (k *KV) readTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	began := k.cfg.Clock.Now()
	if !serializable(r) {
		if err := k.replica.barrier(ctx); err != nil {
			return nil, err
		}
	}
	start := k.cfg.Clock.Now() // without the barrier, as in etcd
	who, st, err := k.Access.permit(ctx)
	if err == nil {
		err = apply.CheckTxn(st, who, k.lessor, r)
	}
	if err != nil {
		return nil, err
	}
	v := k.replica.kv().View()
	defer v.Close()
	resp, err := apply.ReadTxn(v, r)
	end := k.cfg.Clock.Now()
	observeRequest(requestReadTxn, err == nil, end.Sub(start))
	if end.Sub(began) > traceThreshold || k.slow.isSlow(end.Sub(start)) {
		k.slow.readTxnTook(r, resp, err, began, start, end)
	}
	if changed := k.Access.unchanged(who); changed != nil {
		return nil, changed
	}
	return resp, err
}

// serializable reports whether every range allows a local read; true for a transaction
// without operations.
func serializable(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if !op.GetRequestRange().GetSerializable() {
				return false
			}
		}
	}
	return true
}

// Put writes one key and returns once the entry is applied here.
func (k *KV) Put(ctx context.Context, r *pb.PutRequest, raw []byte) (*pb.PutResponse, error) {
	return write[pb.PutResponse](ctx, k.replica.proposer, command.Put, &pb.InternalRaftRequest{Put: r}, raw, r)
}

// DeleteRange deletes the keys of a range.
func (k *KV) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, raw []byte) (*pb.DeleteRangeResponse, error) {
	return write[pb.DeleteRangeResponse](ctx, k.replica.proposer, command.DeleteRange, &pb.InternalRaftRequest{DeleteRange: r}, raw, r)
}

// Txn runs a transaction; one that only reads does not go through the log.
func (k *KV) Txn(ctx context.Context, r *pb.TxnRequest, raw []byte) (*pb.TxnResponse, error) {
	if readOnly(r) {
		return k.readTxn(ctx, r)
	}
	if err := k.checkReads(ctx, r); err != nil {
		return nil, err
	}
	return write[pb.TxnResponse](ctx, k.replica.proposer, command.Txn, &pb.InternalRaftRequest{Txn: r}, raw, r)
}

// Compact deletes the history below a revision. With Physical it returns after the records
// are deleted.
func (k *KV) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	res, err := k.replica.propose(ctx, &pb.InternalRaftRequest{Compaction: r})
	if err != nil {
		return nil, err
	}
	if r.Physical && res.Done != nil {
		if err := k.awaitCompaction(ctx, res.Done); err != nil {
			return nil, err
		}
	}
	return res.Resp.(*pb.CompactionResponse), nil
}

// awaitCompaction waits until the deletion of a compaction's records is durable.
func (k *KV) awaitCompaction(ctx context.Context, done <-chan error) error {
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return ctx.Err()
	case <-k.replica.stop:
	}
	switch {
	case k.replica.rootCtx.Err() != nil:
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, engine.ErrClosed):
		return nil // a received snapshot has replaced the store, and its records with it
	case err != nil:
		return fmt.Errorf("compact: %w", err)
	}
	err = k.replica.flush(ctx, k.replica.mach().Engine())
	switch {
	case k.replica.rootCtx.Err() != nil:
		return rpctypes.ErrGRPCStopped
	case err != nil && !ended(err) && !errors.Is(err, engine.ErrClosed):
		return fmt.Errorf("flush compaction: %w", err)
	}
	return ctx.Err()
}

// readOnly reports whether a transaction can be answered without the log: it contains only
// ranges. A nested transaction counts as a write, as in etcd.
func readOnly(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if _, ok := op.Request.(*pb.RequestOp_RequestRange); !ok {
				return false
			}
		}
	}
	return true
}

// checkReads rejects, in a cluster with members of 3.5 or 3.6, a transaction with a read
// that would fail. When another member has proposed the transaction, those members skip its
// reads and apply its writes, while all others reject it: they would diverge permanently.
// It is not known yet which branch will be taken, so reads in both count.
func (k *KV) checkReads(ctx context.Context, r *pb.TxnRequest) error {
	if v := k.cluster.Version(); !v.Decided() || !v.Less(membership.FirstEqualReads) {
		return nil
	}
	current := false
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			read := op.GetRequestRange()
			if read == nil {
				continue
			}
			if _, err := k.Access.mayRange(ctx, read); err != nil {
				return err
			}
			if read.Revision == 0 {
				continue
			}
			if !current { // this member may be behind what the client has seen elsewhere
				if err := k.replica.barrier(ctx); err != nil {
					return err
				}
				current = true
			}
			kv := k.replica.kv()
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
