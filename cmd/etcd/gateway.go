package main

import (
	"context"
	"fmt"
	"net/http"

	"quorate/internal/gateway"
	"quorate/internal/httpapi"
)

// jsonPerByte is how much longer a JSON message may be than its protobuf form: it has bytes
// in base64 and any amount of white space.
const jsonPerByte = 4

// serveGateway adds the JSON gateway to the client HTTP handler. It calls the handlers of the
// gRPC server within the process.
func (p *process) serveGateway(o *httpapi.Options) {
	if p.cfg.ClientTLS.ClientCertAuth {
		o.RefuseNamed = p.member.Access.AuthEnabled
	}
	p.gateway = p.grpc.NewLocal()
	h, err := gateway.New(context.Background(), p.gateway, gateway.Options{MaxMessage: jsonPerByte * int64(p.cfg.Calls.MaxRequestBytes), Logger: p.lg})
	if err != nil {
		p.report(fmt.Errorf("serve the JSON gateway: %w", err))
		return
	}
	o.Extra = map[string]http.Handler{gateway.Prefix: h}
}

// closeGateway cancels the gateway's calls.
func (p *process) closeGateway() {
	if p.gateway != nil {
		p.gateway.Close()
	}
}
