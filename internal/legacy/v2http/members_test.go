package v2http

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/legacy/v2auth"
)

const limit = 30 * time.Second

var nop = zap.NewNop()

func authOf(m *node) *v2auth.Store { return v2auth.New(m, nop) }

func TestMembers(t *testing.T) {
	m := newNode(t)
	h := m.handler(Options{})
	const self = `{"id":"8e9e05c52164694d","name":"default","peerURLs":["http://127.0.0.1:2380"],"clientURLs":["http://127.0.0.1:2379"]}`
	added := m.newID("http://b:2")
	for _, tt := range []struct{ method, target, body, want string }{
		{"GET", "/v2/members", "", `200 {"members":[` + self + `]}`},
		{"GET", "/v2/members/", "", `200 {"members":[` + self + `]}`},
		{"GET", "/v2/members/leader", "", `200 ` + self},
		{"GET", "/v2/members/8e9e05c52164694d", "", `404 {"message":"Not found"}`},
		{"POST", "/v2/members", `@application/json {"peerURLs":["http://b:2"]}`, `201 {"id":"` + added + `","name":"","peerURLs":["http://b:2"],"clientURLs":[]}`},
		{"POST", "/v2/members", `@application/json {"peerURLs":["http://b:2"]}`, `409 {"message":"membership: ID exists"}`},
		{"POST", "/v2/members", `@application/json {"peerURLs":["http://127.0.0.1:2380"]}`, `409 {"message":"membership: peerURL exists"}`},
		{"POST", "/v2/members", `@application/json {"peerURLs":["` + refuse + `"]}`, `500 {"message":"Internal Server Error"}`},
		{"POST", "/v2/members", `@application/json {"peerURLs":[]}`, `400 {"message":"no valid URLs given"}`},
		{"POST", "/v2/members", `@application/json {"peerURLs":["http://b:2/x"]}`, `400 {"message":"URL must not contain a path: http://b:2/x"}`},
		{"POST", "/v2/members", `@application/json {} x`, `400 {"message":"invalid character 'x' after top-level value"}`},
		{"POST", "/v2/members", `@Application/JSON;charset=utf-8 {}`, `400 {"message":"no valid URLs given"}`},
		{"POST", "/v2/members", `@Application/JSON {}`, `415 {"message":"Bad Content-Type Application/JSON, accept application/json"}`},
		{"POST", "/v2/members", ``, `415 {"message":"Bad Content-Type , accept application/json"}`},
		{"PUT", "/v2/members/" + added, `@application/json {"peerURLs":["http://c:3"]}`, `204 `},
		{"PUT", "/v2/members/" + added, `@application/json {"peerURLs":["http://127.0.0.1:2380"]}`, `409 {"message":"membership: peerURL exists"}`},
		{"PUT", "/v2/members/" + added, `{}`, `415 {"message":"Bad Content-Type application/x-www-form-urlencoded, accept application/json"}`},
		{"PUT", "/v2/members/12", `@application/json {"peerURLs":["http://d:3"]}`, `404 {"message":"No such member: 12"}`},
		{"PUT", "/v2/members/bad", `@application/json {"peerURLs":["http://d:3"]}`, `500 {"message":"Internal Server Error"}`},
		{"PUT", "/v2/members/", `@application/json {"peerURLs":["http://d:3"]}`, `405 Method Not Allowed`},
		{"DELETE", "/v2/members/" + added, "", `204 `},
		{"DELETE", "/v2/members/" + added, "", `410 {"message":"Member permanently removed: ` + added + `"}`},
		{"DELETE", "/v2/members/0bad", "", `410 {"message":"Member permanently removed: bad"}`},
		{"DELETE", "/v2/members/0012", "", `404 {"message":"No such member: 12"}`},
		{"DELETE", "/v2/members/x/y", "", `404 {"message":"No such member: x/y"}`},
		{"DELETE", "/v2/members/8e9e05c52164694d", "", `500 {"message":"Internal Server Error"}`},
		{"DELETE", "/v2/members", "", `405 Method Not Allowed`},
		{"HEAD", "/v2/members", "", `405 Method Not Allowed`},
		{"GET", "/v2/machines", "", `200 http://127.0.0.1:2379`},
		{"PUT", "/v2/machines", "", `405 Method Not Allowed`},
		{"GET", "/v2/stats", "", `404 404 page not found`},
		{"GET", "/v2/stats/leader/", "", `404 404 page not found`},
		{"GET", "/v2/stats/leader", "", `200 {"leader":"8e9e05c52164694d","followers":{}}`},
	} {
		if got := ask(t, h, tt.method, tt.target, "", tt.body); got != tt.want {
			t.Errorf("%s %s %s\ngot  %s\nwant %s", tt.method, tt.target, tt.body, got, tt.want)
		}
	}
	m.lead.Store(0)
	for _, tt := range []struct{ target, want string }{
		{"/v2/members/leader", `503 {"message":"During election"}`},
		{"/v2/stats/leader", `403 {"message":"not current leader"}`},
	} {
		if got := ask(t, h, "GET", tt.target, "", ""); got != tt.want {
			t.Errorf("without a leader: %s: %s, want %s", tt.target, got, tt.want)
		}
	}
}

// newID is the id of a member added now.
func (m *node) newID(url string) string {
	x, _, err := m.MemberAdd(context.Background(), []string{url}, false)
	if err != nil {
		m.t.Fatal(err)
	}
	m.all = m.all[:1]
	return fmt.Sprintf("%x", x.ID)
}

// An error that is not the store's has code 300 and the server's text.
func TestErrorsOfTheServer(t *testing.T) {
	m := newNode(t)
	h := m.handler(Options{})
	for _, tt := range []struct {
		err  error
		want string
	}{
		{rpctypes.ErrGRPCTimeoutDueToLeaderFail, "etcdserver: request timed out, possibly due to previous leader failure"},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), "etcdserver: request timed out"},
		{rpctypes.ErrGRPCStopped, "etcdserver: server stopped"},
		{errors.New("some <text>"), `some \u003ctext\u003e`},
	} {
		m.doErr = tt.err
		want := `500 {"errorCode":300,"message":"Raft Internal Error","cause":"` + tt.want + `","index":0}`
		if got := ask(t, h, "PUT", "/v2/keys/k", "", "value=1"); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		// The switch cannot be read: no access is granted.
		for _, target := range []string{"/v2/auth/users", "/v2/auth/enable"} {
			if got, want := ask(t, h, "GET", target, "", ""), `500 {"message":"Internal Server Error"}`; got != want {
				t.Errorf("%s: got %s, want %s", target, got, want)
			}
		}
		if got, want := ask(t, h, "DELETE", "/v2/members/1", "", ""), `500 {"message":"Internal Server Error"}`; got != want {
			t.Errorf("members: got %s, want %s", got, want)
		}
	}
}

// Headers that the vectors do not contain: a HEAD has those of a GET and no body.
func TestHead(t *testing.T) {
	m := newNode(t)
	h := m.handler(Options{})
	s := httptest.NewServer(h)
	defer s.Close()
	put(t, m, h, "/k", "value=1")
	resp, err := s.Client().Head(s.URL + "/v2/keys/k")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := fmt.Sprint(resp.StatusCode, resp.Header["X-Etcd-Index"], resp.Header["X-Raft-Index"], resp.Header["X-Etcd-Cluster-Id"], resp.Header["Content-Type"]); got != "200 [4] [5] [cdf818194e3a8c32] [application/json]" {
		t.Errorf("HEAD: %s", got)
	}
}
