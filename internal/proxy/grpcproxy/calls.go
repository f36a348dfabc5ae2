package grpcproxy

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"quorate/internal/clock"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// caller identifies the client on whose behalf the proxy sends a request. Different callers
// share nothing.
type caller struct {
	token         string // authentication token; "" is none
	requireLeader bool   // wants an error, instead of silence, when the member loses its leader
}

func first(md metadata.MD, key string) string {
	if v := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func callerOf(ctx context.Context) caller {
	md, _ := metadata.FromIncomingContext(ctx)
	return caller{token: tokenOf(md), requireLeader: first(md, rpctypes.MetadataRequireLeaderKey) == rpctypes.MetadataHasLeader}
}

// tokenOf reads the token from either of the places that members accept.
func tokenOf(md metadata.MD) string {
	if t := first(md, rpctypes.TokenFieldNameGRPC); t != "" {
		return t
	}
	return first(md, rpctypes.TokenFieldNameSwagger)
}

// as returns ctx for calls to members on behalf of c.
func (c caller) as(ctx context.Context) context.Context {
	md := metadata.MD{}
	if c.token != "" {
		md.Set(rpctypes.TokenFieldNameGRPC, c.token)
	}
	if c.requireLeader {
		md.Set(rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	}
	if len(md) == 0 {
		return ctx
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// onward returns the context of a call with the metadata that members need.
func onward(ctx context.Context) context.Context {
	ctx = callerOf(ctx).as(ctx)
	if in, _ := metadata.FromIncomingContext(ctx); first(in, rpctypes.MetadataClientAPIVersionKey) != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataClientAPIVersionKey, first(in, rpctypes.MetadataClientAPIVersionKey))
	}
	return ctx
}

// enter returns a context of the call that is cancelled when the proxy stops, too.
func (p *Proxy) enter(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(onward(ctx))
	stop := context.AfterFunc(p.ctx, func() { cancel(errStopped) })
	return ctx, func() { stop(); cancel(nil) }
}

func (p *Proxy) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	ctx, leave := p.enter(ctx)
	defer leave()
	defer p.survive(info.FullMethod, &err)
	resp, err = handler(ctx, req)
	if err != nil {
		return nil, clientError(ctx, err)
	}
	return resp, nil
}

func (p *Proxy) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	ctx, leave := p.enter(ss.Context())
	defer leave()
	defer p.survive(info.FullMethod, &err)
	return clientError(ctx, handler(srv, &enteredStream{ss, ctx}))
}

type enteredStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *enteredStream) Context() context.Context { return s.ctx }

// survive turns a panic into an error of the call: input from clients passes through
// libraries that expect trusted input.
func (p *Proxy) survive(method string, err *error) {
	if r := recover(); r != nil {
		p.lg.Error("call failed", zap.String("method", method), zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
		*err = status.Error(codes.Internal, "grpc-proxy: internal error")
	}
}

// clientError returns err as a member would have sent it, with its code.
func clientError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, errStopped) {
		return errStopped
	}
	if e := (rpctypes.EtcdError{}); errors.As(err, &e) {
		return status.Error(e.Code(), e.Error())
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.FromContextError(err).Err()
}

// minFailure is the minimum duration of a call that fails because no member can be reached.
// Sessions and leased keys are retried without a pause.
const minFailure = 50 * time.Millisecond

func paced(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	began := clock.Now()
	err := invoke(ctx, method, req, reply, cc, opts...)
	if err == nil || status.Code(err) != codes.Unavailable {
		return err
	}
	if left := minFailure - clock.Since(began); left > 0 {
		t := clock.NewTimer(clock.System, left)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return err
}

// direct replaces the client's own interceptor, which retries.
func direct(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(ctx, desc, cc, method, opts...)
}
