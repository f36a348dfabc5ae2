package rpc

import (
	"context"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"quorate/internal/crash"
	"quorate/internal/wire"
)

// edge is what the handlers of all services share. Nothing in it changes once
// the server serves.
type edge struct {
	b  Backend
	o  Options
	lg *zap.Logger

	clusterID, memberID uint64

	// methods are the series of the methods that NewServer registers, by full
	// name. Those of services registered later appear with their first call.
	methods map[string]*methodSeries
	lateMu  sync.Mutex
	late    map[string]*methodSeries

	unaryVersions, streamVersions *clientVersions

	leaders *leaderWatch
	health  healthSwitch
}

// admit decides whether a call may go on, as far as that depends on the member
// and the metadata of the call. needLeader reports the client's wish that the
// call end when the leader is lost.
func (e *edge) admit(ctx context.Context, versions *clientVersions, learnerMayServe bool) (needLeader bool, err error) {
	if !e.b.Capable() {
		return false, rpctypes.ErrGRPCNotCapable
	}
	if !learnerMayServe && e.b.IsLearner() {
		return false, rpctypes.ErrGRPCNotSupportedForLearner
	}
	version := unknownVersion
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 {
		version = v[0]
		if !utf8.ValidString(version) {
			return false, rpctypes.ErrGRPCInvalidClientAPIVersion
		}
	}
	versions.inc(version)
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey); len(v) > 0 && v[0] == rpctypes.MetadataHasLeader {
		if e.b.Leader() == 0 {
			return true, rpctypes.ErrGRPCNoLeader
		}
		return true, nil
	}
	return false, nil
}

// seriesOf finds the series of a method by its full name.
func (e *edge) seriesOf(full string, fromClient, fromServer bool) *methodSeries {
	if s := e.methods[full]; s != nil {
		return s
	}
	e.lateMu.Lock()
	defer e.lateMu.Unlock()
	s := e.late[full]
	if s == nil {
		service, name, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
		s = newMethodSeries(service, grpc.MethodInfo{Name: name, IsClientStream: fromClient, IsServerStream: fromServer}, e.o.Extensive)
		e.late[full] = s
	}
	return s
}

// header is the header of an answer at rev, where 0 means now.
func (e *edge) header(rev int64) wire.Header {
	if rev == 0 {
		rev = e.b.Rev()
	}
	return wire.Header{ClusterID: e.clusterID, MemberID: e.memberID, Revision: rev, Term: e.b.Term()}
}

// fill completes the header of a response.
func (e *edge) fill(h *pb.ResponseHeader) *pb.ResponseHeader {
	if h == nil {
		h = new(pb.ResponseHeader)
	}
	h.ClusterId, h.MemberId, h.RaftTerm = e.clusterID, e.memberID, e.b.Term()
	if h.Revision == 0 {
		h.Revision = e.b.Rev()
	}
	return h
}

// bare is the header of answers that tell no revision.
func (e *edge) bare() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: e.clusterID, MemberId: e.memberID, RaftTerm: e.b.Term()}
}

// unary describes a method whose request is decoded into a Q. The handlers do
// not go through gRPC's interceptors, which cost several allocations a call.
func unary[Q, R any](e *edge, service, name string, call func(context.Context, *Q) (R, error)) grpc.MethodDesc {
	full := "/" + service + "/" + name
	series := newMethodSeries(service, grpc.MethodInfo{Name: name}, e.o.Extensive)
	e.methods[full] = series
	return unaryWith(e, full, name, func() *methodSeries { return series }, call)
}

// lateUnary is unary for the services whose series appear with the first call,
// as they do in etcd.
func lateUnary[Q, R any](e *edge, service, name string, call func(context.Context, *Q) (R, error)) grpc.MethodDesc {
	full := "/" + service + "/" + name
	return unaryWith(e, full, name, func() *methodSeries { return e.seriesOf(full, false, false) }, call)
}

func unaryWith[Q, R any](e *edge, full, name string, seriesOf func() *methodSeries, call func(context.Context, *Q) (R, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			defer crash.Guard()
			in := new(struct { // one allocation
				call unaryCall
				req  Q
			})
			req := &in.req
			in.call.req = req
			if err := decode(&in.call); err != nil {
				return nil, err
			}
			if in.call.err != nil {
				return nil, status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", in.call.err)
			}
			start := time.Now()
			series := seriesOf()
			series.started.Inc()
			series.received.Inc()
			resp, err := admitted(e, ctx, req, call)
			took := time.Since(start)
			series.sent.Inc()
			if series.seconds != nil {
				series.seconds.Observe(took.Seconds())
			}
			if took > e.o.WarnUnaryDuration || e.o.debug {
				e.logRequest(ctx, full, start, took, req, resp)
			}
			if err != nil {
				err = toStatus(err)
				series.done(err)
				return nil, err
			}
			series.done(nil)
			return resp, nil
		},
	}
}

func admitted[Q, R any](e *edge, ctx context.Context, req *Q, call func(context.Context, *Q) (R, error)) (resp R, err error) {
	if _, err := e.admit(ctx, e.unaryVersions, learnerMayServe(req)); err != nil {
		return resp, err
	}
	return call(ctx, req)
}

// learnerMayServe reports whether a learner answers a unary request.
func learnerMayServe(req any) bool {
	switch r := req.(type) {
	case *rangeCall:
		return r.req.Serializable
	case *pb.StatusRequest:
		return true
	}
	return false
}

// interceptUnary does for the methods of generated services what unary does
// for ours, which do not come here.
func (e *edge) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	defer crash.Guard()
	series := e.seriesOf(info.FullMethod, false, false)
	start := time.Now()
	series.started.Inc()
	series.received.Inc()
	resp, err := any(nil), error(nil)
	if _, err = e.admit(ctx, e.unaryVersions, learnerMayServe(req)); err == nil {
		resp, err = handler(ctx, req)
	}
	took := time.Since(start)
	series.sent.Inc()
	if series.seconds != nil {
		series.seconds.Observe(took.Seconds())
	}
	if took > e.o.WarnUnaryDuration || e.o.debug {
		e.logRequest(ctx, info.FullMethod, start, took, req, resp)
	}
	if err != nil {
		err = toStatus(err)
		series.done(err)
		return nil, err
	}
	series.done(nil)
	return resp, nil
}

// stream counts the messages of a streaming call and can be cut. Attempts count
// as messages, also those that fail and the one that sees the end of the stream:
// that is what the interceptor of the ecosystem does, here and in unary calls.
type stream struct {
	grpc.ServerStream
	ctx    context.Context
	series *methodSeries
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) SendMsg(m any) error {
	s.series.sent.Inc()
	return s.ServerStream.SendMsg(m)
}

func (s *stream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	s.series.received.Inc()
	return err
}

// fullSnapshot is the only stream that a learner serves.
const fullSnapshot = "/" + maintenanceService + "/Snapshot"

func (e *edge) interceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	defer crash.Guard()
	s := &stream{ServerStream: ss, ctx: ss.Context(), series: e.seriesOf(info.FullMethod, info.IsClientStream, info.IsServerStream)}
	start := time.Now()
	s.series.started.Inc()
	needLeader, err := e.admit(s.ctx, e.streamVersions, info.FullMethod == fullSnapshot)
	if err == nil {
		if needLeader {
			ctx, cancel := context.WithCancelCause(s.ctx)
			s.ctx = ctx
			forget := e.leaders.add(cancel)
			err = handler(srv, s)
			forget()
			cancel(nil)
		} else {
			err = handler(srv, s)
		}
	}
	if err != nil {
		err = toStatus(err)
	}
	s.series.done(err)
	if s.series.seconds != nil {
		s.series.seconds.Observe(time.Since(start).Seconds())
	}
	return err
}

// endOf is the error of a stream whose context is done: the reason why it was
// cut, or that of the client.
func endOf(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return ctx.Err()
}
