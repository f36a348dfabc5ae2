package rpc

import (
	"context"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/h2"
	"quorate/internal/ids"
	"quorate/internal/wire"
)

// edge admits calls and runs the handlers of all services. It does not change once the
// server is serving, except for late and what is synchronized internally.
type edge struct {
	b Backend
	o Options
	identity
	reporter

	// methods has the metrics of the methods registered by NewServer, by full name. Those of
	// the lock and election services are in late, created by their first call.
	methods map[string]*methodSeries
	lateMu  sync.Mutex
	late    map[string]*methodSeries

	unaryVersions, streamVersions *clientVersions

	leaders *leaderWatch
	health  healthSwitch

	stopping context.Context // done after EndStreams, with the error for clients as its cause
}

// identity is the member that answers, as response headers name it.
type identity struct {
	member    Member
	clusterID ids.Cluster
	memberID  ids.Member
}

// reporter reports calls to the log, to metrics and to tracing.
type reporter struct {
	lg        *zap.Logger
	stats     stats.Handler // nil without tracing
	warnAfter time.Duration // slower unary calls are logged
	debug     bool          // all unary calls are logged
}

// until returns the context of a call that is also cancelled when end is, with the same
// cause. The caller must call done after the call.
func until(end, ctx context.Context) (_ context.Context, cut context.CancelCauseFunc, done func()) {
	ctx, cut = context.WithCancelCause(ctx)
	forget := context.AfterFunc(end, func() { cut(context.Cause(end)) })
	return ctx, cut, func() { forget(); cut(nil) }
}

// admit decides whether a call may proceed, as far as that depends on the state of the
// member and the metadata of the call. needLeader reports that the client wants the call
// to end if the leader is lost.
func (e *edge) admit(ctx context.Context, versions *clientVersions, learnerMayServe bool) (needLeader bool, err error) {
	if !e.b.Member.Capable() {
		return false, rpctypes.ErrGRPCNotCapable
	}
	if !learnerMayServe && e.b.Member.IsLearner() {
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
		if e.b.Member.Leader() == 0 {
			return true, rpctypes.ErrGRPCNoLeader
		}
		return true, nil
	}
	return false, nil
}

// seriesOf returns the metrics of a method, given its full name.
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

// header returns the header of a reply at rev; 0 means the current revision.
func (m identity) header(rev ids.Revision) wire.Header {
	if rev == 0 {
		rev = m.member.Rev()
	}
	return wire.Header{ClusterID: uint64(m.clusterID), MemberID: uint64(m.memberID), Revision: int64(rev), Term: uint64(m.member.Term())}
}

// fill completes the header of a reply.
func (m identity) fill(h *pb.ResponseHeader) *pb.ResponseHeader {
	if h == nil {
		h = new(pb.ResponseHeader)
	}
	h.ClusterId, h.MemberId, h.RaftTerm = uint64(m.clusterID), uint64(m.memberID), uint64(m.member.Term())
	if h.Revision == 0 {
		h.Revision = int64(m.member.Rev())
	}
	return h
}

// bare returns the header of replies that report no revision.
func (m identity) bare() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: uint64(m.clusterID), MemberId: uint64(m.memberID), RaftTerm: uint64(m.member.Term())}
}

// unary describes a unary method whose request is decoded into a Q.
func unary[Q, R any](e *edge, service, name string, call func(context.Context, *Q) (R, error)) method {
	full := "/" + service + "/" + name
	series := newMethodSeries(service, grpc.MethodInfo{Name: name}, e.o.Extensive)
	e.methods[full] = series
	return unaryWith(e, full, name, func() *methodSeries { return series }, call)
}

// lateUnary is unary for the services whose metrics appear with the first call, as in
// etcd.
func lateUnary[Q, R any](e *edge, service, name string, call func(context.Context, *Q) (R, error)) method {
	full := "/" + service + "/" + name
	return unaryWith(e, full, name, func() *methodSeries { return e.seriesOf(full, false, false) }, call)
}

func unaryWith[Q, R any](e *edge, full, name string, seriesOf func() *methodSeries, call func(context.Context, *Q) (R, error)) method {
	return method{name: name, unary: func(ctx context.Context, b []byte) (h2.Reply, error) {
		defer crash.Guard()
		req := new(Q)
		if err := decodeRequest(b, req); err != nil {
			return h2.Reply{}, err
		}
		start := clock.Now()
		series := seriesOf()
		series.started.Inc()
		series.received.Inc()
		resp, err := admitted(e, ctx, req, call)
		took := clock.Since(start)
		series.sent.Inc()
		if err != nil {
			e.wasCarriedOut(ctx, full, series, start, took, req, resp)
			err = toStatus(err)
			series.done(err)
			return h2.Reply{}, err
		}
		series.done(nil)
		if l := listOf(resp); l != nil {
			return e.replyList(l, func(reading time.Duration) { e.wasCarriedOut(ctx, full, series, start, took+reading, req, resp) })
		}
		e.wasCarriedOut(ctx, full, series, start, took, req, resp)
		return reply(resp)
	}}
}

func admitted[Q, R any](e *edge, ctx context.Context, req *Q, call func(context.Context, *Q) (R, error)) (resp R, err error) {
	if _, err := e.admit(ctx, e.unaryVersions, learnerMayServe(req)); err != nil {
		return resp, err
	}
	return call(ctx, req)
}

// learnerMayServe reports whether a learner serves the unary request.
func learnerMayServe(req any) bool {
	switch r := req.(type) {
	case *rangeCall:
		return r.req.Serializable
	case *pb.StatusRequest:
		return true
	}
	return false
}

// endOf returns the error of a stream whose context is done: the cause of its
// cancellation.
func endOf(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return ctx.Err()
}
