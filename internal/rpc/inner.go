package rpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"quorate/internal/watch"
)

// The lock and election services are clients of this member's own keys and
// leases. What they need of them is here: calls that are validated and carried
// out like those of a client, with the client's context and so its identity,
// but without a connection in between.

// sessionTTL is how long, in seconds, a lease lasts that a lock or an election
// grants for a client that has brought none.
const sessionTTL = 60

// cleanupTimeout bounds taking back a claim whose caller has gone.
const cleanupTimeout = 10 * time.Second

// errLostWatcher ends a wait whose watcher was taken from it.
var errLostWatcher = errors.New("lost watcher waiting for delete")

// asClient makes err what it is after a client has received it: errors of etcd
// lose their code, so that those who pass them on send them with code Unknown.
func asClient(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(toStatus(err))
	if s.Code() == codes.DeadlineExceeded { // none of etcd's own
		return s.Err()
	}
	if rpctypes.Error(s.Err()) != s.Err() {
		return status.Error(codes.Unknown, s.Message())
	}
	return s.Err()
}

// innerTxn runs a transaction.
func (e *edge) innerTxn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	c := &txnCall{}
	c.req.Compare, c.req.Success, c.req.Failure = req.Compare, req.Success, req.Failure
	resp, err := e.txn(ctx, c)
	return resp, asClient(err)
}

// innerRange reads keys, linearizably.
func (e *edge) innerRange(ctx context.Context, req *pb.RangeRequest) (*pb.ResponseHeader, []*mvccpb.KeyValue, error) {
	c := &rangeCall{}
	proto.Merge(&c.req, req)
	r, err := e.rangeInMemory(ctx, c)
	if err != nil {
		return nil, nil, asClient(err)
	}
	kvs := make([]*mvccpb.KeyValue, len(r.res.KVs))
	for i, b := range r.res.KVs {
		kvs[i] = new(mvccpb.KeyValue)
		if err := proto.Unmarshal(b, kvs[i]); err != nil {
			return nil, nil, fmt.Errorf("decode stored key: %w", err)
		}
	}
	h := r.header
	return &pb.ResponseHeader{ClusterId: h.ClusterID, MemberId: h.MemberID, Revision: h.Revision, RaftTerm: h.Term}, kvs, nil
}

// innerDelete deletes one key.
func (e *edge) innerDelete(ctx context.Context, key []byte) (*pb.ResponseHeader, error) {
	c := &deleteCall{}
	c.req.Key = key
	resp, err := e.deleteRange(ctx, c)
	if err != nil {
		return nil, asClient(err)
	}
	return resp.Header, nil
}

// innerWatch watches the keys of req and hands each event to f, with the header
// of the response that brought it, until f has had enough or fails.
func (e *edge) innerWatch(ctx context.Context, req *pb.WatchCreateRequest, f func(h *pb.ResponseHeader, ev *mvccpb.Event) (enough bool, err error)) error {
	ws := e.b.Watches.Hub().NewStream(ctx)
	defer ws.Close()
	if err := e.b.Watches.CreateWatch(ctx, ws, req); err != nil {
		return e.asWatcher(ctx, err)
	}
	for {
		r, err := ws.Next(ctx)
		if err != nil {
			return e.asWatcher(ctx, err)
		}
		if r.Canceled {
			return canceledWatch(r)
		}
		for _, field := range r.Events {
			ev, err := decodeEvent(field)
			if err != nil {
				return err
			}
			h := e.fill(&pb.ResponseHeader{Revision: r.Revision})
			if enough, err := f(h, ev); enough || err != nil {
				return err
			}
		}
	}
}

// asWatcher is the error of a watcher whose stream has ended.
func (e *edge) asWatcher(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	if errors.Is(err, watch.ErrClosed) {
		if e.stopping.Err() != nil { // ctx is about to end
			return context.Cause(e.stopping)
		}
		return errLostWatcher
	}
	return err
}

// canceledWatch says why the server has ended a watcher.
func canceledWatch(r watch.Response) error {
	switch {
	case r.CompactRevision != 0:
		return asClient(rpctypes.ErrGRPCCompacted)
	case r.CancelReason != "":
		return status.Error(codes.Unknown, r.CancelReason)
	}
	return asClient(rpctypes.ErrGRPCFutureRev)
}

// decodeEvent decodes an event as a watch response holds it, a whole field.
func decodeEvent(field []byte) (*mvccpb.Event, error) {
	_, _, n := protowire.ConsumeTag(field)
	if n < 0 {
		return nil, fmt.Errorf("decode event: %w", protowire.ParseError(n))
	}
	body, n := protowire.ConsumeBytes(field[n:])
	if n < 0 {
		return nil, fmt.Errorf("decode event: %w", protowire.ParseError(n))
	}
	ev := new(mvccpb.Event)
	if err := proto.Unmarshal(body, ev); err != nil {
		return nil, fmt.Errorf("decode event: %w", err)
	}
	return ev, nil
}

// claim is a key below a name that stands for who wants what the name stands
// for. The oldest key has it.
type claim struct {
	prefix string
	key    []byte
	lease  int64
	// rev is the create revision of the key.
	rev int64
}

// newClaim names a claim on name, with a lease of its own if the client has
// brought none.
func (e *edge) newClaim(ctx context.Context, name []byte, lease int64) (claim, error) {
	if lease == 0 {
		resp, err := e.leaseGrant(ctx, &pb.LeaseGrantRequest{TTL: sessionTTL})
		if err != nil {
			return claim{}, asClient(err)
		}
		lease = resp.ID
	}
	prefix := string(name) + "/"
	return claim{prefix: prefix, key: []byte(prefix + strconv.FormatInt(lease, 16)), lease: lease}, nil
}

// stake puts the key of the claim with its value unless it is there, and runs
// also in the same transaction. The answer to what the key held before is the
// first response if the transaction has not succeeded.
func (e *edge) stake(ctx context.Context, c *claim, value []byte, also ...*pb.RequestOp) (*pb.TxnResponse, *mvccpb.KeyValue, error) {
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: c.key, Value: value, Lease: c.lease}}}
	resp, err := e.innerTxn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{createdAt(c.key, 0)},
		Success: append([]*pb.RequestOp{put}, also...),
		Failure: append([]*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: c.key})}, also...),
	})
	if err != nil {
		return nil, nil, err
	}
	c.rev = resp.Header.Revision
	if resp.Succeeded {
		return resp, nil, nil
	}
	kv := resp.Responses[0].GetResponseRange().Kvs[0]
	c.rev = kv.CreateRevision
	return resp, kv, nil
}

// waitTurn returns when no claim is older than c.
func (e *edge) waitTurn(ctx context.Context, c *claim) error {
	for {
		h, kvs, err := e.innerRange(ctx, &pb.RangeRequest{
			Key: []byte(c.prefix), RangeEnd: prefixEnd(c.prefix), MaxCreateRevision: c.rev - 1,
			SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_DESCEND, Limit: 1,
		})
		if err != nil || len(kvs) == 0 {
			return err
		}
		// Waiting for the next older claim alone wakes one waiter at a time.
		err = e.innerWatch(ctx, &pb.WatchCreateRequest{Key: kvs[0].Key, StartRevision: h.Revision},
			func(_ *pb.ResponseHeader, ev *mvccpb.Event) (bool, error) { return ev.Type == mvccpb.Event_DELETE, nil })
		if err != nil {
			return err
		}
	}
}

// afterwards is a context for taking something back when that of the call may
// be done.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}

// oldestOf reads the oldest claim below a prefix.
func oldestOf(prefix string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(prefix), RangeEnd: prefixEnd(prefix),
		SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND, Limit: 1}
}

// prefixEnd is the end of the range of keys below prefix, which ends in a slash.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++
	return end
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func createdAt(key []byte, rev int64) *pb.Compare {
	return &pb.Compare{Key: key, Result: pb.Compare_EQUAL, Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: rev}}
}
