package main

import (
	"context"
	"net/http"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/httpapi"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2http"
	"quorate/internal/legacy/v2member"
	"quorate/internal/legacy/v2request"
	"quorate/internal/membership"
	"quorate/internal/server"
)

// v2Edge adapts the member to the interface that v2http declares.
type v2Edge struct {
	*v2member.Service
	*server.V2Passwords
	*server.Stats
	m *server.Member
}

var _ v2http.Backend = v2Edge{}

func (e v2Edge) ClusterID() ids.Cluster { return e.m.ClusterID() }
func (e v2Edge) Term() ids.Term         { return e.m.Term() }
func (e v2Edge) Leader() ids.Member     { return e.m.Leader() }

// CommittedIndex returns the index of the newest entry known to be committed.
func (e v2Edge) CommittedIndex() ids.Index { return e.m.CommittedIndex() }

// Members returns all members, sorted by id.
func (e v2Edge) Members() []membership.Member { return e.m.Cluster().Members() }

// IsRemoved reports whether a member with this id was removed.
func (e v2Edge) IsRemoved(id ids.Member) bool { return e.m.Cluster().IsRemoved(id) }

// MemberAdd adds a member.
func (e v2Edge) MemberAdd(ctx context.Context, peerURLs []string, learner bool) (*pb.Member, []*pb.Member, error) {
	return e.m.Members.MemberAdd(ctx, peerURLs, learner)
}

// MemberRemove removes a member for good.
func (e v2Edge) MemberRemove(ctx context.Context, id ids.Member) ([]*pb.Member, error) {
	return e.m.Members.MemberRemove(ctx, id)
}

// MemberUpdate gives a member new peer URLs.
func (e v2Edge) MemberUpdate(ctx context.Context, id ids.Member, peerURLs []string) ([]*pb.Member, error) {
	return e.m.Members.MemberUpdate(ctx, id, peerURLs)
}

// checkV2 is the read behind /health while the v2 API is served.
func (e v2Edge) checkV2(ctx context.Context) error {
	_, err := e.V2Do(ctx, &v2request.Request{Method: "QGET", Path: "/"})
	return err
}

// serveV2 adds the v2 API to the client HTTP handler.
func (p *process) serveV2(o *httpapi.Options) {
	p.lg.Warn("--enable-v2 is deprecated: etcd 3.6 and later do not have the v2 API")
	e := v2Edge{Service: p.member.V2, V2Passwords: p.member.V2Passwords, Stats: p.member.Stats, m: p.member}
	o.CheckV2 = e.checkV2
	h := v2http.NewHandler(e, v2http.Options{Logger: p.lg, RequestTimeout: p.cfg.Member.RequestTimeout(), ClientCertAuth: p.cfg.ClientTLS.ClientCertAuth})
	if o.Extra == nil {
		o.Extra = map[string]http.Handler{}
	}
	o.Extra[v2http.Prefix], o.Extra[v2http.Prefix+"/"] = h, h
}
