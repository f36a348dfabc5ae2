package grpcproxy

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type kvServer struct {
	pb.UnimplementedKVServer
	kv    clientv3.KV
	cache *cache
}

// Range answers reads that may be stale from the cache.
func (s *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	token := callerOf(ctx).token
	if r.Serializable {
		resp, err := s.cache.get(token, r)
		if resp != nil || err != nil {
			return resp, err
		}
	}
	read := s.cache.begin(token, r)
	defer read.end()
	answer, err := s.kv.Do(ctx, rangeOp(r))
	if err != nil {
		return nil, err
	}
	resp := (*pb.RangeResponse)(answer.Get())
	read.store(resp)
	return resp, nil
}

// RangeStream is not supported, as in etcd's proxy; clients fall back to Range.
func (s *kvServer) RangeStream(*pb.RangeRequest, grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	return status.Error(codes.Unimplemented, "RangeStream is not supported by the gRPC proxy")
}

// Put invalidates the cached answers that it makes stale.
func (s *kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	defer s.cache.invalidate(span{string(r.Key), ""})()
	answer, err := s.kv.Do(ctx, putOp(r))
	if err != nil {
		return nil, err
	}
	return (*pb.PutResponse)(answer.Put()), nil
}

// DeleteRange invalidates the cached answers that it makes stale.
func (s *kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	defer s.cache.invalidate(span{string(r.Key), string(r.RangeEnd)})()
	answer, err := s.kv.Do(ctx, deleteOp(r))
	if err != nil {
		return nil, err
	}
	return (*pb.DeleteRangeResponse)(answer.Del()), nil
}

// Txn invalidates what it writes, in either branch, and what it compares or reads: its
// client has seen a newer state, and must not read an older one afterwards.
func (s *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	op, err := txnOp(r)
	if err != nil {
		return nil, err
	}
	defer s.cache.invalidate(touched(nil, r)...)()
	answer, err := s.kv.Do(ctx, op)
	if err != nil {
		return nil, err
	}
	return (*pb.TxnResponse)(answer.Txn()), nil
}

// touched appends the spans that a transaction, or one nested in it, may write, compare or
// read.
func touched(spans []span, r *pb.TxnRequest) []span {
	for _, c := range r.Compare {
		spans = append(spans, span{string(c.Key), string(c.RangeEnd)})
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			switch {
			case op.GetRequestRange() != nil:
				g := op.GetRequestRange()
				spans = append(spans, span{string(g.Key), string(g.RangeEnd)})
			case op.GetRequestPut() != nil:
				spans = append(spans, span{string(op.GetRequestPut().Key), ""})
			case op.GetRequestDeleteRange() != nil:
				d := op.GetRequestDeleteRange()
				spans = append(spans, span{string(d.Key), string(d.RangeEnd)})
			case op.GetRequestTxn() != nil:
				spans = touched(spans, op.GetRequestTxn())
			}
		}
	}
	return spans
}

// Compact makes cached reads of older revisions fail.
func (s *kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	var opts []clientv3.CompactOption
	if r.Physical {
		opts = append(opts, clientv3.WithCompactPhysical())
	}
	resp, err := s.kv.Compact(ctx, r.Revision, opts...)
	if err != nil {
		return nil, err
	}
	s.cache.compact(r.Revision)
	return (*pb.CompactionResponse)(resp), nil
}

func rangeOp(r *pb.RangeRequest) clientv3.Op {
	opts := []clientv3.OpOption{
		clientv3.WithRev(r.Revision), clientv3.WithLimit(r.Limit),
		clientv3.WithSort(clientv3.SortTarget(r.SortTarget), clientv3.SortOrder(r.SortOrder)),
		clientv3.WithMinCreateRev(r.MinCreateRevision), clientv3.WithMaxCreateRev(r.MaxCreateRevision),
		clientv3.WithMinModRev(r.MinModRevision), clientv3.WithMaxModRev(r.MaxModRevision),
	}
	if len(r.RangeEnd) > 0 {
		opts = append(opts, clientv3.WithRange(string(r.RangeEnd)))
	}
	if r.Serializable {
		opts = append(opts, clientv3.WithSerializable())
	}
	if r.KeysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	if r.CountOnly {
		opts = append(opts, clientv3.WithCountOnly())
	}
	return clientv3.OpGet(string(r.Key), opts...)
}

func putOp(r *pb.PutRequest) clientv3.Op {
	opts := []clientv3.OpOption{clientv3.WithLease(clientv3.LeaseID(r.Lease))}
	if r.PrevKv {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if r.IgnoreValue {
		opts = append(opts, clientv3.WithIgnoreValue())
	}
	if r.IgnoreLease {
		opts = append(opts, clientv3.WithIgnoreLease())
	}
	return clientv3.OpPut(string(r.Key), string(r.Value), opts...)
}

func deleteOp(r *pb.DeleteRangeRequest) clientv3.Op {
	var opts []clientv3.OpOption
	if len(r.RangeEnd) > 0 {
		opts = append(opts, clientv3.WithRange(string(r.RangeEnd)))
	}
	if r.PrevKv {
		opts = append(opts, clientv3.WithPrevKV())
	}
	return clientv3.OpDelete(string(r.Key), opts...)
}

// txnOp fails for an invalid operation, with a member's error.
func txnOp(r *pb.TxnRequest) (clientv3.Op, error) {
	cmps := make([]clientv3.Cmp, len(r.Compare))
	for i, c := range r.Compare {
		cmps[i] = clientv3.FromCompare(c)
	}
	success, err := txnOps(r.Success)
	if err != nil {
		return clientv3.Op{}, err
	}
	failure, err := txnOps(r.Failure)
	return clientv3.OpTxn(cmps, success, failure), err
}

func txnOps(rs []*pb.RequestOp) ([]clientv3.Op, error) {
	ops := make([]clientv3.Op, len(rs))
	for i, r := range rs {
		switch {
		case r.GetRequestRange() != nil:
			ops[i] = rangeOp(r.GetRequestRange())
		case r.GetRequestPut() != nil:
			ops[i] = putOp(r.GetRequestPut())
		case r.GetRequestDeleteRange() != nil:
			ops[i] = deleteOp(r.GetRequestDeleteRange())
		case r.GetRequestTxn() != nil:
			op, err := txnOp(r.GetRequestTxn())
			if err != nil {
				return nil, err
			}
			ops[i] = op
		default:
			return nil, rpctypes.ErrGRPCKeyNotFound
		}
	}
	return ops, nil
}
