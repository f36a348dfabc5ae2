// Package gateway serves the gRPC methods as JSON over HTTP and websockets.
//
// In: HTTP requests below /v3/, and a client of the gRPC server. Out: JSON
// responses and streams like those of etcd's gateway. Always true: a call takes the same path
// as that of a gRPC client, so it is validated, authorized, counted and logged in the same
// way; a message from a client takes a bounded amount of memory.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	etcdgw "go.etcd.io/etcd/api/v3/etcdserverpb/gw"

	"quorate/internal/rpc/v3electionpb"
	"quorate/internal/rpc/v3lockpb"
)

// Prefix is the path prefix that the gateway serves.
const Prefix = "/v3/"

// Options configures a gateway.
type Options struct {
	// MaxMessage limits one JSON message of a client, in bytes; 0 means no limit.
	MaxMessage int64
	// Logger receives log lines; nil disables logging.
	Logger *zap.Logger
}

// New returns the handler for the paths below Prefix. It makes its calls through conn, which
// the caller must close.
func New(ctx context.Context, conn grpc.ClientConnInterface, o Options) (http.Handler, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	var m runtime.Marshaler = &runtime.JSONPb{
		MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
		UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
	}
	if o.MaxMessage > 0 {
		m = bounded{m, o.MaxMessage}
	}
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{Marshaler: m}))
	if err := errors.Join(
		etcdgw.RegisterKVHandlerClient(ctx, mux, pb.NewKVClient(conn)),
		etcdgw.RegisterWatchHandlerClient(ctx, mux, pb.NewWatchClient(conn)),
		etcdgw.RegisterLeaseHandlerClient(ctx, mux, pb.NewLeaseClient(conn)),
		etcdgw.RegisterClusterHandlerClient(ctx, mux, pb.NewClusterClient(conn)),
		etcdgw.RegisterMaintenanceHandlerClient(ctx, mux, pb.NewMaintenanceClient(conn)),
		etcdgw.RegisterAuthHandlerClient(ctx, mux, pb.NewAuthClient(conn)),
		v3lockpb.RegisterLockHandlerClient(ctx, mux, v3lockpb.NewLockClient(conn)),
		v3electionpb.RegisterElectionHandlerClient(ctx, mux, v3electionpb.NewElectionClient(conn)),
	); err != nil {
		return nil, fmt.Errorf("register JSON gateway: %w", err)
	}
	return &sockets{next: mux, lg: o.Logger, maxMessage: o.MaxMessage}, nil
}

// bounded is a marshaler that does not read messages longer than max. A request may contain
// any number of messages.
type bounded struct {
	runtime.Marshaler
	max int64
}

func (b bounded) NewDecoder(r io.Reader) runtime.Decoder {
	budget := &budgetReader{r: r, max: b.max}
	d := b.Marshaler.NewDecoder(budget)
	return runtime.DecoderFunc(func(v any) error {
		budget.left = b.max
		return d.Decode(v)
	})
}

// budgetReader reads up to left bytes and then fails. The decoder may have buffered the
// beginning of the next message, so a message of more than max bytes may get through, but
// never one of more than twice that.
type budgetReader struct {
	r         io.Reader
	left, max int64
}

func (b *budgetReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("request is larger than %d bytes", b.max)
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
