package rpc

import (
	"context"
	"path"
	"strings"
	"sync"

	"google.golang.org/grpc"
)

// CountCalls returns interceptors that count the calls of another package's server in
// the metrics declared here.
func CountCalls() (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	var methods sync.Map // full name to *methodSeries; bounded, since only registered methods get here
	of := func(full string, fromClient, fromServer bool) *methodSeries {
		if s, ok := methods.Load(full); ok {
			return s.(*methodSeries)
		}
		m := grpc.MethodInfo{IsClientStream: fromClient, IsServerStream: fromServer}
		m.Name = path.Base(full)
		s, _ := methods.LoadOrStore(full, newMethodSeries(strings.TrimPrefix(path.Dir(full), "/"), m, false))
		return s.(*methodSeries)
	}
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		s := of(info.FullMethod, false, false)
		s.started.Inc()
		s.received.Inc()
		resp, err := handler(ctx, req)
		s.done(err)
		if err == nil {
			s.sent.Inc()
		}
		return resp, err
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		s := of(info.FullMethod, info.IsClientStream, info.IsServerStream)
		s.started.Inc()
		err := handler(srv, &countedStream{ss, s})
		s.done(err)
		return err
	}
	return unary, stream
}

type countedStream struct {
	grpc.ServerStream
	series *methodSeries
}

func (s *countedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.series.received.Inc()
	}
	return err
}

func (s *countedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.series.sent.Inc()
	}
	return err
}
