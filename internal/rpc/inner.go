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
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/watch"
)

// inner makes the calls of the lock and election services, which are clients of this
// member's own keys and leases. The calls are validated and executed like those of a client,
// with the context, and so the identity, of the original client, but without a connection.
type inner struct {
	kv       *kvServer
	leases   *leaseServer
	watches  Watches
	stopping context.Context // as in edge
}

// sessionTTL is the TTL, in seconds, of the lease granted for a client of a lock or an
// election that has brought none.
const sessionTTL = 60

// cleanupTimeout limits the withdrawal of a claim whose caller has gone.
const cleanupTimeout = 10 * time.Second

// errLostWatcher ends a wait whose watcher was closed.
var errLostWatcher = errors.New("lost watcher waiting for delete")

// asClient converts err to what a client of the member would have received: etcd's errors
// lose their code, so that the service passes them on with code Unknown.
func asClient(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(toStatus(err))
	if s.Code() == codes.DeadlineExceeded { // not one of etcd's
		return s.Err()
	}
	if rpctypes.Error(s.Err()) != s.Err() {
		return status.Error(codes.Unknown, s.Message())
	}
	return s.Err()
}

// txn executes a transaction.
func (n *inner) txn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	c := &txnCall{}
	c.req.Compare, c.req.Success, c.req.Failure = req.Compare, req.Success, req.Failure
	resp, err := n.kv.txn(ctx, c)
	return resp, asClient(err)
}

// read reads keys linearizably.
func (n *inner) read(ctx context.Context, req *pb.RangeRequest) (*pb.ResponseHeader, []*mvccpb.KeyValue, error) {
	c := &rangeCall{}
	proto.Merge(&c.req, req)
	r, err := n.kv.rangeInMemory(ctx, c)
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

// del deletes one key.
func (n *inner) del(ctx context.Context, key []byte) (*pb.ResponseHeader, error) {
	c := &deleteCall{}
	c.req.Key = key
	resp, err := n.kv.deleteRange(ctx, c)
	if err != nil {
		return nil, asClient(err)
	}
	return resp.Header, nil
}

// watch watches the keys of req and calls f with each event and the header of its
// response, until f returns enough or an error.
func (n *inner) watch(ctx context.Context, req *pb.WatchCreateRequest, f func(h *pb.ResponseHeader, ev *mvccpb.Event) (enough bool, err error)) error {
	ws := n.watches.Hub().NewStream(ctx)
	defer ws.Close()
	if err := n.watches.CreateWatch(ctx, ws, req); err != nil {
		return n.asWatcher(ctx, err)
	}
	for {
		r, err := ws.Next(ctx)
		if err != nil {
			return n.asWatcher(ctx, err)
		}
		if r.Canceled {
			return canceledWatch(r)
		}
		for _, field := range r.Events {
			ev, err := decodeEvent(field)
			if err != nil {
				return err
			}
			h := n.kv.fill(&pb.ResponseHeader{Revision: int64(r.Revision)})
			if enough, err := f(h, ev); enough || err != nil {
				return err
			}
		}
	}
}

// asWatcher returns the error for a watcher whose stream has ended.
func (n *inner) asWatcher(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	if errors.Is(err, watch.ErrClosed) {
		if n.stopping.Err() != nil { // ctx is about to be done
			return context.Cause(n.stopping)
		}
		return errLostWatcher
	}
	return err
}

// canceledWatch returns the error for a watcher that the server has cancelled.
func canceledWatch(r watch.Response) error {
	switch {
	case r.CompactRevision != 0:
		return asClient(rpctypes.ErrGRPCCompacted)
	case r.CancelReason != "":
		return status.Error(codes.Unknown, r.CancelReason)
	}
	return asClient(rpctypes.ErrGRPCFutureRev)
}

// decodeEvent decodes an event from its encoding as a field of a watch response.
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

// claim is a key under the name of a lock or an election. The claim with the oldest key
// holds the lock, or leads.
type claim struct {
	prefix string
	key    []byte
	lease  lease.ID
	// rev is the create revision of the key; 0 before stake.
	rev ids.Revision
}

// newClaim returns a claim under name. It grants a lease if the client has brought none.
func (n *inner) newClaim(ctx context.Context, name []byte, id lease.ID) (claim, error) {
	if id == 0 {
		resp, err := n.leases.leaseGrant(ctx, &pb.LeaseGrantRequest{TTL: sessionTTL})
		if err != nil {
			return claim{}, asClient(err)
		}
		id = lease.ID(resp.ID)
	}
	prefix := string(name) + "/"
	return claim{prefix: prefix, key: []byte(prefix + strconv.FormatInt(int64(id), 16)), lease: id}, nil
}

// stake creates the key of the claim with its value unless the key exists, and executes
// also in the same transaction. If the key existed, it returns the key's record.
func (n *inner) stake(ctx context.Context, c *claim, value []byte, also ...*pb.RequestOp) (*pb.TxnResponse, *mvccpb.KeyValue, error) {
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: c.key, Value: value, Lease: int64(c.lease)}}}
	resp, err := n.txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{createdAt(c.key, 0)},
		Success: append([]*pb.RequestOp{put}, also...),
		Failure: append([]*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: c.key})}, also...),
	})
	if err != nil {
		return nil, nil, err
	}
	c.rev = ids.Revision(resp.Header.Revision)
	if resp.Succeeded {
		return resp, nil, nil
	}
	kv := resp.Responses[0].GetResponseRange().Kvs[0]
	c.rev = ids.Revision(kv.CreateRevision)
	return resp, kv, nil
}

// waitTurn waits until no claim is older than c.
func (n *inner) waitTurn(ctx context.Context, c *claim) error {
	for {
		h, kvs, err := n.read(ctx, &pb.RangeRequest{
			Key: []byte(c.prefix), RangeEnd: prefixEnd(c.prefix), MaxCreateRevision: int64(c.rev - 1),
			SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_DESCEND, Limit: 1,
		})
		if err != nil || len(kvs) == 0 {
			return err
		}
		// Wait only for the next older claim, so that each release wakes one waiter.
		err = n.watch(ctx, &pb.WatchCreateRequest{Key: kvs[0].Key, StartRevision: h.Revision},
			func(_ *pb.ResponseHeader, ev *mvccpb.Event) (bool, error) { return ev.Type == mvccpb.Event_DELETE, nil })
		if err != nil {
			return err
		}
	}
}

// afterwards returns a context for cleaning up after a call whose own context may be done.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}

// oldestOf returns a request for the oldest claim with a prefix.
func oldestOf(prefix string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(prefix), RangeEnd: prefixEnd(prefix),
		SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND, Limit: 1}
}

// prefixEnd returns the end of the range of keys with prefix, which must end in a slash.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++
	return end
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func createdAt(key []byte, rev ids.Revision) *pb.Compare {
	return &pb.Compare{Key: key, Result: pb.Compare_EQUAL, Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: int64(rev)}}
}
