package main

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"quorate/internal/gateway"
	"quorate/internal/httpapi"
	"quorate/internal/listen"
)

// jsonPerByte is how much longer a JSON message may be than its protobuf form: it has bytes
// in base64 and any amount of white space.
const jsonPerByte = 4

// serveGateway adds the JSON gateway to the client HTTP handler. It reaches the gRPC server
// through a pipe in the process, so it needs neither an address nor TLS.
func (p *process) serveGateway(o *httpapi.Options) {
	if p.cfg.ClientTLS.ClientCertAuth {
		o.RefuseNamed = p.member.Access.AuthEnabled
	}
	p.pipe = listen.NewPipe()
	p.serveGRPC(p.pipe)
	conn, err := grpc.NewClient("passthrough:///gateway",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.pipe.Dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err == nil {
		p.gateway = conn
		var h http.Handler
		h, err = gateway.New(context.Background(), conn, gateway.Options{MaxMessage: jsonPerByte * int64(p.cfg.Calls.MaxRequestBytes), Logger: p.lg})
		o.Extra = map[string]http.Handler{gateway.Prefix: h}
	}
	if err != nil {
		p.report(fmt.Errorf("serve the JSON gateway: %w", err))
	}
}

// closeGateway cancels the gateway's calls and closes its connection.
func (p *process) closeGateway() {
	if p.gateway != nil {
		p.gateway.Close()
	}
	if p.pipe != nil {
		p.pipe.Close()
	}
}
