package rpc

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/crash"
	"quorate/internal/lease"
	"quorate/internal/metrics"
	"quorate/internal/wire"
)

const leaseService = "etcdserverpb.Lease"

// leaseServer serves the service Lease.
type leaseServer struct {
	identity
	reporter
	leases Leases
}

func (l *leaseServer) describe(e *edge) service {
	return service{
		name: leaseService,
		methods: []method{
			unary(e, leaseService, "LeaseGrant", l.leaseGrant),
			unary(e, leaseService, "LeaseRevoke", l.leaseRevoke),
			unary(e, leaseService, "LeaseTimeToLive", l.leaseTimeToLive),
			unary(e, leaseService, "LeaseLeases", l.leaseLeases),
			{name: "LeaseKeepAlive", stream: l.leaseKeepAlive, fromServer: true, fromClient: true},
		},
	}
}

func (l *leaseServer) leaseGrant(ctx context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	resp, err := l.leases.LeaseGrant(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = l.fill(resp.Header)
	return resp, nil
}

func (l *leaseServer) leaseRevoke(ctx context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	resp, err := l.leases.LeaseRevoke(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = l.fill(resp.Header)
	return resp, nil
}

func leaseNotFound(err error) bool {
	return err != nil && errors.Is(toStatus(err), rpctypes.ErrGRPCLeaseNotFound)
}

func (l *leaseServer) leaseTimeToLive(ctx context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	id := req.ID
	resp, err := l.leases.TimeToLive(ctx, req)
	if leaseNotFound(err) {
		resp, err = &pb.LeaseTimeToLiveResponse{ID: id, TTL: -1}, nil
	}
	if err != nil {
		return nil, err
	}
	resp.Header = l.fill(resp.Header)
	return resp, nil
}

func (l *leaseServer) leaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	resp, err := l.leases.LeaseLeases(ctx)
	if err != nil {
		return nil, err
	}
	resp.Header = l.fill(resp.Header)
	return resp, nil
}

// leaseKeepAlive answers the requests in order. Receiving does not stop when the stream is
// cancelled because the leader is lost, so the loop has its own goroutine, which returns
// when the stream ends.
func (l *leaseServer) leaseKeepAlive(s *stream) error {
	end := make(chan error, 1)
	go crash.Guarded(func() { end <- l.renewAll(s) })()
	select {
	case err := <-end:
		return err
	case <-s.Context().Done():
		return endOf(s.Context())
	}
}

func (l *leaseServer) renewAll(s *stream) error {
	if s.stats == nil {
		s.h2.AnswerWith(wire.MaxLeaseKeepAlive, func(b, req []byte) ([]byte, bool) { return l.renewAtOnce(s, b, req) })
	}
	for {
		c := new(keepAliveCall)
		if err := s.RecvMsg(c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			l.streamFailed(s, "receive", "lease-keepalive", err)
			return err
		}
		// Build the header first: a revision from after the renewal could be one at which
		// the lease is gone again.
		reply := &keepAliveReply{header: l.header(0), id: c.req.ID}
		ttl, err := l.leases.LeaseRenew(s.Context(), lease.ID(c.req.ID))
		if err != nil && !leaseNotFound(err) {
			return err
		}
		if err == nil {
			reply.ttl = ttl
		}
		if err := s.SendMsg(reply); err != nil {
			l.streamFailed(s, "send", "lease-keepalive", err)
			return err
		}
	}
}

// renewAtOnce answers a request on the goroutine that reads the connection.
func (l *leaseServer) renewAtOnce(s *stream, b, encoded []byte) ([]byte, bool) {
	var req pb.LeaseKeepAliveRequest
	if s.Context().Err() != nil || wire.DecodeLeaseKeepAlive(encoded, &req) != nil {
		return b, false
	}
	header := l.header(0) // before the renewal, as in renewAll
	ttl, ok := l.leases.RenewAtOnce(lease.ID(req.ID))
	if !ok {
		return b, false
	}
	n := len(b)
	b = wire.AppendLeaseKeepAlive(b, &header, req.ID, ttl)
	s.series.received.Inc()
	s.series.sent.Inc()
	metrics.NetworkClientGRPCSentBytesTotal.Add(float64(len(b) - n))
	return b, true
}
