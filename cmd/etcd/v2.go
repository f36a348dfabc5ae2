package main

import (
	"context"
	"net/http"

	"quorate/internal/command"
	"quorate/internal/httpapi"
	"quorate/internal/legacy/v2http"
	"quorate/internal/membership"
	"quorate/internal/server"
)

// v2Edge fits the member to what v2http calls.
type v2Edge struct{ *server.Member }

var _ v2http.Backend = v2Edge{}

// Members returns all members, sorted by id.
func (e v2Edge) Members() []membership.Member { return e.Cluster().Members() }

// IsRemoved reports whether there once was a member with this id.
func (e v2Edge) IsRemoved(id uint64) bool { return e.Cluster().IsRemoved(id) }

// checkV2 is the read behind /health while the v2 API is served.
func (e v2Edge) checkV2(ctx context.Context) error {
	_, err := e.V2Do(ctx, &command.V2Request{Method: "QGET", Path: "/"})
	return err
}

// serveV2 puts the v2 API onto the client's HTTP handler.
func (p *process) serveV2(o *httpapi.Options) {
	p.lg.Warn("--enable-v2 is deprecated: etcd 3.6 and later do not have the v2 API")
	e := v2Edge{p.member}
	o.CheckV2 = e.checkV2
	h := v2http.NewHandler(e, v2http.Options{Logger: p.lg, RequestTimeout: p.cfg.RequestTimeout(), ClientCertAuth: p.cfg.ClientTLS.ClientCertAuth})
	if o.Extra == nil {
		o.Extra = map[string]http.Handler{}
	}
	o.Extra[v2http.Prefix], o.Extra[v2http.Prefix+"/"] = h, h
}
