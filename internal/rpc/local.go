package rpc

import (
	"context"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"quorate/internal/h2"
)

// Local is a client of the server within the process: a grpc.ClientConnInterface for generated
// clients, without a connection. A call is admitted, limited, counted, traced and logged as one
// that comes over a connection.
type Local struct{ calls *h2.Local }

var _ grpc.ClientConnInterface = (*Local)(nil)

// NewLocal returns a client. Its calls end with Close, or when the server stops.
func (s *Server) NewLocal() *Local { return &Local{s.Server.NewLocal(inProcess{})} }

// Close ends all calls. Later ones fail.
func (l *Local) Close() { l.calls.Close() }

// inProcess is the address of a Local, for log lines.
type inProcess struct{}

var _ net.Addr = inProcess{}

func (inProcess) Network() string { return "pipe" }
func (inProcess) String() string  { return "in-process" }

// localAgent is what servers see of grpc-go's clients.
const localAgent = "grpc-go/" + grpc.Version

// begin starts a call with the metadata that a client of grpc-go would send.
func (l *Local) begin(ctx context.Context, method string) (*h2.LocalCall, error) {
	md, _ := metadata.FromOutgoingContext(ctx)
	if md == nil {
		md = metadata.MD{}
	}
	md[":authority"], md["content-type"], md["user-agent"] = []string{"gateway"}, []string{"application/grpc"}, []string{localAgent}
	return l.calls.NewCall(ctx, method, md)
}

// Invoke makes a unary call. Of the options it knows Header and Trailer.
func (l *Local) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	b, err := marshalLocal(args)
	if err != nil {
		return err
	}
	c, err := l.begin(ctx, method)
	if err != nil {
		return err
	}
	_ = c.Send(b) // if the call has ended already, recvLocal has the reason
	c.CloseSend()
	err = recvLocal(c, reply)
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = c.Header()
		case grpc.TrailerCallOption:
			*o.TrailerAddr = c.Trailer()
		}
	}
	if err == io.EOF {
		return status.Error(codes.Internal, "cardinality violation: received no response message from non-server-streaming RPC")
	}
	return err
}

// NewStream starts a streaming call.
func (l *Local) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	c, err := l.begin(ctx, method)
	if err != nil {
		return nil, err
	}
	return &localStream{ctx, c}, nil
}

type localStream struct {
	ctx  context.Context
	call *h2.LocalCall
}

func (s *localStream) Header() (metadata.MD, error) { return s.call.Header(), nil }
func (s *localStream) Trailer() metadata.MD         { return s.call.Trailer() }
func (s *localStream) Context() context.Context     { return s.ctx }
func (s *localStream) RecvMsg(m any) error          { return recvLocal(s.call, m) }

func (s *localStream) SendMsg(m any) error {
	b, err := marshalLocal(m)
	if err != nil {
		return err
	}
	return s.call.Send(b)
}

func (s *localStream) CloseSend() error {
	s.call.CloseSend()
	return nil
}

func marshalLocal(m any) ([]byte, error) {
	b, err := proto.Marshal(m.(proto.Message))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	return b, nil
}

func recvLocal(c *h2.LocalCall, m any) error {
	b, err := c.Recv()
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, m.(proto.Message)); err != nil {
		return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	return nil
}
