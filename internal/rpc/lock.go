package rpc

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/rpc/v3lockpb"
)

const lockService = "v3lockpb.Lock"

var errSessionExpired = errors.New("mutex: session is expired")

func (e *edge) lockDesc() service {
	return service{
		name: lockService,
		methods: []method{
			lateUnary(e, lockService, "Lock", e.lock),
			lateUnary(e, lockService, "Unlock", e.unlock),
		},
	}
}

// lock waits until the caller's key is the oldest with the lock's prefix.
func (e *edge) lock(ctx context.Context, req *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
	ctx, _, done := until(e.stopping, ctx)
	defer done()
	c, err := e.newClaim(ctx, req.Name, req.Lease)
	if err != nil {
		return nil, err
	}
	resp, _, err := e.stake(ctx, &c, nil, rangeOp(oldestOf(c.prefix)))
	if err != nil {
		return nil, err
	}
	owner := resp.Responses[1].GetResponseRange().Kvs
	if len(owner) == 0 || owner[0].CreateRevision == c.rev {
		return &v3lockpb.LockResponse{Header: resp.Header, Key: c.key}, nil
	}
	h, err := e.takeTurn(ctx, &c)
	if err != nil {
		return nil, err
	}
	return &v3lockpb.LockResponse{Header: h, Key: c.key}, nil
}

// takeTurn waits until the caller holds the lock, and then checks that its key still
// exists. If it fails, it deletes the key.
func (e *edge) takeTurn(ctx context.Context, c *claim) (*pb.ResponseHeader, error) {
	err := e.waitTurn(ctx, c)
	if err == nil {
		h, kvs, rerr := e.innerRange(ctx, &pb.RangeRequest{Key: c.key})
		if rerr == nil && len(kvs) == 0 {
			return nil, errSessionExpired
		}
		if rerr == nil {
			return h, nil
		}
		err = rerr
	}
	after, cancel := afterwards(ctx)
	defer cancel()
	_, _ = e.innerDelete(after, c.key) // if this fails, the key ends with its lease; the caller gets the error of the wait
	return nil, err
}

func (e *edge) unlock(ctx context.Context, req *v3lockpb.UnlockRequest) (*v3lockpb.UnlockResponse, error) {
	h, err := e.innerDelete(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	return &v3lockpb.UnlockResponse{Header: h}, nil
}
