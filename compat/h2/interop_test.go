package h2

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/interop"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"quorate/internal/h2"
)

// registrar adds services with generated code to our server.
type registrar struct{ *h2.Server }

func (r registrar) RegisterService(d *grpc.ServiceDesc, impl any) {
	for _, m := range d.Methods {
		r.HandleUnary("/"+d.ServiceName+"/"+m.MethodName, func(s *h2.Stream, req []byte) (h2.Reply, error) {
			resp, err := m.Handler(impl, grpc.NewContextWithServerTransportStream(s.Context(), s),
				func(v any) error { return proto.Unmarshal(req, v.(proto.Message)) }, nil)
			if err != nil {
				return h2.Reply{}, err
			}
			pieces, err := encoded(resp)
			return h2.Reply{Pieces: pieces}, err
		})
	}
	for _, m := range d.Streams {
		r.HandleStream("/"+d.ServiceName+"/"+m.StreamName, func(s *h2.Stream) error {
			return m.Handler(impl, stream{s, m.ClientStreams})
		})
	}
}

func encoded(m any) (mem.BufferSlice, error) {
	b, err := proto.Marshal(m.(proto.Message))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

type stream struct {
	*h2.Stream
	many bool
}

func (s stream) Context() context.Context {
	return grpc.NewContextWithServerTransportStream(s.Stream.Context(), s.Stream)
}
func (s stream) SetTrailer(md metadata.MD) { s.Stream.SetTrailer(md) }
func (s stream) SendMsg(m any) error {
	b, err := encoded(m)
	if err != nil {
		return err
	}
	return s.Send(b, false)
}
func (s stream) RecvMsg(m any) error {
	recv := s.RecvOnly
	if s.many {
		recv = s.Recv
	}
	b, err := recv()
	if err != nil {
		return err
	}
	return proto.Unmarshal(b, m.(proto.Message))
}

// TestInterop runs gRPC's interop cases. A failing case exits the process.
func TestInterop(t *testing.T) {
	srv := h2.New(h2.Options{})
	testpb.RegisterTestServiceServer(registrar{srv}, interop.NewTestServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	defer srv.Stop()
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	tc := testpb.NewTestServiceClient(cc)
	for name, do := range map[string]func(context.Context, testpb.TestServiceClient, ...grpc.CallOption){
		"empty_unary": interop.DoEmptyUnaryCall, "large_unary": interop.DoLargeUnaryCall, "client_streaming": interop.DoClientStreaming,
		"server_streaming": interop.DoServerStreaming, "ping_pong": interop.DoPingPong, "empty_stream": interop.DoEmptyStream,
		"timeout_on_sleeping_server": interop.DoTimeoutOnSleepingServer, "cancel_after_begin": interop.DoCancelAfterBegin,
		"cancel_after_first_response": interop.DoCancelAfterFirstResponse, "custom_metadata": interop.DoCustomMetadata,
		"status_code_and_message": interop.DoStatusCodeAndMessage, "special_status_message": interop.DoSpecialStatusMessage,
	} {
		t.Run(name, func(t *testing.T) {
			for _, opts := range [][]grpc.CallOption{nil, {grpc.UseCompressor("gzip")}} {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				do(ctx, tc, opts...)
				cancel()
			}
		})
	}
	t.Run("unimplemented", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		interop.DoUnimplementedService(ctx, testpb.NewUnimplementedServiceClient(cc))
		interop.DoUnimplementedMethod(ctx, cc)
	})
}
