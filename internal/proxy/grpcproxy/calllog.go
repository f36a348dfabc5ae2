package grpcproxy

import (
	"context"
	"path"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// callLog logs every message of every call, without passwords and tokens.
type callLog struct{ lg *zap.Logger }

func (l callLog) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	lg := l.of(ctx, info.FullMethod)
	received(lg, req)
	resp, err := handler(ctx, req)
	if err != nil {
		resp = nil
	}
	sent(lg, resp, err)
	return resp, err
}

func (l callLog) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return handler(srv, &loggedStream{ss, l.of(ss.Context(), info.FullMethod)})
}

func (l callLog) of(ctx context.Context, method string) *zap.Logger {
	fields := []zap.Field{zap.String("grpc.service", strings.TrimPrefix(path.Dir(method), "/")), zap.String("grpc.method", path.Base(method))}
	if p, ok := peer.FromContext(ctx); ok {
		fields = append(fields, zap.Stringer("peer.address", p.Addr))
	}
	return l.lg.With(fields...)
}

type loggedStream struct {
	grpc.ServerStream
	lg *zap.Logger
}

func (s *loggedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		received(s.lg, m)
	}
	return err
}

func (s *loggedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	sent(s.lg, m, err)
	return err
}

func received(lg *zap.Logger, m any) {
	lg.Info("received payload logged as grpc.request.content field", zap.String("grpc.request.content", content(m)))
}

func sent(lg *zap.Logger, m any, err error) {
	fields := []zap.Field{zap.String("grpc.response.content", content(m))}
	if err != nil {
		fields = append(fields, zap.NamedError("grpc.response.error", err))
	}
	lg.Info("returned response payload logged as grpc.response.content field", fields...)
}

func content(m any) string {
	switch x := m.(type) {
	case *pb.AuthenticateRequest:
		m = &pb.AuthenticateRequest{Name: x.Name}
	case *pb.AuthenticateResponse:
		m = &pb.AuthenticateResponse{Header: x.Header}
	case *pb.AuthUserAddRequest:
		m = &pb.AuthUserAddRequest{Name: x.Name, Options: x.Options}
	case *pb.AuthUserChangePasswordRequest:
		m = &pb.AuthUserChangePasswordRequest{Name: x.Name}
	}
	p, ok := m.(proto.Message)
	if !ok {
		return ""
	}
	b, err := protojson.Marshal(p)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
