package apply

import (
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/mvcc"
)

// keyspace applies requests to the key space, and keeps the leases of its keys up to date.
type keyspace struct {
	kv     *mvcc.Store
	lessor *lease.Lessor
}

// finish ends a transaction of the key space, updates the leases and adds
// the changes to out.
func (k *keyspace) finish(t *mvcc.Txn, out *Outcome) {
	changes := t.End()
	k.relate(changes)
	out.Changes = append(out.Changes, changes...)
}

// header returns a header with the current revision of the key space.
func (k *keyspace) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: int64(k.kv.Rev())}
}

func (k *keyspace) put(b engine.Batch, r *pb.PutRequest, out *Outcome) Result {
	t := k.kv.Begin(b)
	resp, err := k.putIn(t, r)
	k.finish(t, out)
	if err != nil {
		return answer(err)
	}
	return Result{Resp: resp}
}

// answer distinguishes errors of the request from failures of the member.
func answer(err error) Result {
	if mapped := requestError(err); mapped != nil {
		return Result{Err: mapped}
	}
	return fatal(err)
}

// requestError returns the client's error for err, or nil if err is no error
// of a request.
func requestError(err error) error {
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		return rpctypes.ErrGRPCCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		return rpctypes.ErrGRPCFutureRev
	case errors.Is(err, rpctypes.ErrGRPCLeaseNotFound), errors.Is(err, rpctypes.ErrGRPCKeyNotFound):
		return err
	}
	return nil
}

// checkPut decides whether the put may run in the state before its transaction. It
// checks the lease before the key, an order that clients can see.
func (k *keyspace) checkPut(t *mvcc.Txn, r *pb.PutRequest) error {
	if r.Lease != 0 && !k.lessor.Exists(lease.ID(r.Lease)) {
		return rpctypes.ErrGRPCLeaseNotFound
	}
	if r.IgnoreValue || r.IgnoreLease {
		if _, ok := t.Lookup(r.Key); !ok {
			return rpctypes.ErrGRPCKeyNotFound
		}
	}
	return nil
}

// putIn writes one key. On an error, nothing is written.
func (k *keyspace) putIn(t *mvcc.Txn, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := k.checkPut(t, r); err != nil {
		return nil, err
	}
	// Allocate response and header together.
	x := new(struct {
		resp pb.PutResponse
		hdr  pb.ResponseHeader
	})
	x.resp.Header = &x.hdr
	value, leaseID := r.Value, lease.ID(r.Lease)
	if r.IgnoreValue || r.PrevKv {
		prev, err := current(t, r.Key)
		if err != nil {
			return nil, err
		}
		if r.PrevKv {
			x.resp.PrevKv = prev
		}
		if r.IgnoreValue {
			value = prev.GetValue()
		}
	}
	if r.IgnoreLease {
		meta, _ := t.Lookup(r.Key)
		leaseID = meta.Lease
	}
	t.Put(r.Key, value, leaseID)
	x.hdr.Revision = int64(t.Rev())
	return &x.resp, nil
}

// current reads one key as the transaction sees it; nil if it does not
// exist.
func current(t *mvcc.Txn, key []byte) (*mvccpb.KeyValue, error) {
	res, err := t.Range(&pb.RangeRequest{Key: key})
	if err != nil || len(res.KVs) == 0 {
		return nil, err
	}
	return decodeKV(res.KVs[0])
}

func decodeKV(b []byte) (*mvccpb.KeyValue, error) {
	kv := &mvccpb.KeyValue{}
	if err := proto.Unmarshal(b, kv); err != nil {
		return nil, fmt.Errorf("decode stored key: %w", err)
	}
	return kv, nil
}

func decodeKVs(bs [][]byte) ([]*mvccpb.KeyValue, error) {
	if len(bs) == 0 {
		return nil, nil
	}
	kvs := make([]*mvccpb.KeyValue, len(bs))
	for i, b := range bs {
		kv, err := decodeKV(b)
		if err != nil {
			return nil, err
		}
		kvs[i] = kv
	}
	return kvs, nil
}

func (k *keyspace) deleteRange(b engine.Batch, r *pb.DeleteRangeRequest, out *Outcome) Result {
	t := k.kv.Begin(b)
	resp, err := deleteIn(t, r)
	k.finish(t, out)
	if err != nil {
		return answer(err)
	}
	return Result{Resp: resp}
}

func deleteIn(t *mvcc.Txn, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	resp := &pb.DeleteRangeResponse{}
	if r.PrevKv {
		res, err := t.Range(&pb.RangeRequest{Key: r.Key, RangeEnd: r.RangeEnd})
		if err != nil {
			return nil, err
		}
		if resp.PrevKvs, err = decodeKVs(res.KVs); err != nil {
			return nil, err
		}
	}
	resp.Deleted = int64(len(t.DeleteRange(r.Key, r.RangeEnd)))
	resp.Header = &pb.ResponseHeader{Revision: int64(t.Rev())}
	return resp, nil
}

func (k *keyspace) compact(b engine.Batch, r *pb.CompactionRequest) Result {
	done, err := k.kv.Compact(b, ids.Revision(r.Revision))
	if err != nil {
		return answer(err)
	}
	return Result{Resp: &pb.CompactionResponse{Header: k.header()}, Done: done}
}
