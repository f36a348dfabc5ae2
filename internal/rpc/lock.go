package rpc

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/rpc/v3lockpb"
)

const lockService = "v3lockpb.Lock"

var errSessionExpired = errors.New("mutex: session is expired")

// lockServer serves the service Lock.
type lockServer struct{ inner }

func (l *lockServer) describe(e *edge) service {
	return service{
		name: lockService,
		methods: []method{
			lateUnary(e, lockService, "Lock", l.lock),
			lateUnary(e, lockService, "Unlock", l.unlock),
		},
	}
}

// lock waits until the caller's key is the oldest with the lock's prefix.
func (l *lockServer) lock(ctx context.Context, req *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
	ctx, _, done := until(l.stopping, ctx)
	defer done()
	c, err := l.newClaim(ctx, req.Name, lease.ID(req.Lease))
	if err != nil {
		return nil, err
	}
	resp, _, err := l.stake(ctx, &c, nil, rangeOp(oldestOf(c.prefix)))
	if err != nil {
		return nil, err
	}
	owner := resp.Responses[1].GetResponseRange().Kvs
	if len(owner) == 0 || ids.Revision(owner[0].CreateRevision) == c.rev {
		return &v3lockpb.LockResponse{Header: resp.Header, Key: c.key}, nil
	}
	h, err := l.takeTurn(ctx, &c)
	if err != nil {
		return nil, err
	}
	return &v3lockpb.LockResponse{Header: h, Key: c.key}, nil
}

// takeTurn waits until the caller holds the lock, and then checks that its key still
// exists. If it fails, it deletes the key.
func (l *lockServer) takeTurn(ctx context.Context, c *claim) (*pb.ResponseHeader, error) {
	err := l.waitTurn(ctx, c)
	if err == nil {
		h, kvs, rerr := l.read(ctx, &pb.RangeRequest{Key: c.key})
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
	_, _ = l.del(after, c.key) // if this fails, the key ends with its lease; the caller gets the error of the wait
	return nil, err
}

func (l *lockServer) unlock(ctx context.Context, req *v3lockpb.UnlockRequest) (*v3lockpb.UnlockResponse, error) {
	h, err := l.del(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	return &v3lockpb.UnlockResponse{Header: h}, nil
}
