package rpc

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/crash"
)

const leaseService = "etcdserverpb.Lease"

func (e *edge) leaseDesc() service {
	return service{
		name: leaseService,
		methods: []method{
			unary(e, leaseService, "LeaseGrant", e.leaseGrant),
			unary(e, leaseService, "LeaseRevoke", e.leaseRevoke),
			unary(e, leaseService, "LeaseTimeToLive", e.leaseTimeToLive),
			unary(e, leaseService, "LeaseLeases", e.leaseLeases),
			{name: "LeaseKeepAlive", stream: e.leaseKeepAlive, fromServer: true, fromClient: true},
		},
	}
}

func (e *edge) leaseGrant(ctx context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	resp, err := e.b.Leases.LeaseGrant(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

func (e *edge) leaseRevoke(ctx context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	resp, err := e.b.Leases.LeaseRevoke(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

func leaseNotFound(err error) bool {
	return err != nil && errors.Is(toStatus(err), rpctypes.ErrGRPCLeaseNotFound)
}

func (e *edge) leaseTimeToLive(ctx context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	id := req.ID
	resp, err := e.b.Leases.TimeToLive(ctx, req)
	if leaseNotFound(err) {
		resp, err = &pb.LeaseTimeToLiveResponse{ID: id, TTL: -1}, nil
	}
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

func (e *edge) leaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	resp, err := e.b.Leases.LeaseLeases(ctx)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

// leaseKeepAlive answers the requests in order. Receiving does not stop when the stream is
// cancelled because the leader is lost, so the loop has its own goroutine, which returns
// when the stream ends.
func (e *edge) leaseKeepAlive(s *stream) error {
	end := make(chan error, 1)
	go crash.Guarded(func() { end <- e.renewAll(s) })()
	select {
	case err := <-end:
		return err
	case <-s.Context().Done():
		return endOf(s.Context())
	}
}

func (e *edge) renewAll(s *stream) error {
	for {
		c := new(keepAliveCall)
		if err := s.RecvMsg(c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			e.streamFailed(s, "receive", "lease-keepalive", err)
			return err
		}
		// Build the header first: a revision from after the renewal could be one at which
		// the lease is gone again.
		reply := &keepAliveReply{header: e.header(0), id: c.req.ID}
		ttl, err := e.b.Leases.LeaseRenew(s.Context(), c.req.ID)
		if err != nil && !leaseNotFound(err) {
			return err
		}
		if err == nil {
			reply.ttl = ttl
		}
		if err := s.SendMsg(reply); err != nil {
			e.streamFailed(s, "send", "lease-keepalive", err)
			return err
		}
	}
}
