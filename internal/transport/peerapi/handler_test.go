package peerapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"quorate/internal/build"
	"quorate/internal/digest"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

// member is a Backend that returns its fields.
type member struct {
	cluster      string
	members      []membership.Member
	promoted     string // what PromoteMember was called with
	promoteErr   error
	hashErr      error
	downgradeErr error
}

func (m *member) Versions() (string, string)   { return m.cluster, m.cluster }
func (m *member) ClusterID() ids.Cluster       { return 0xcdf818194e3a8c32 }
func (m *member) Members() []membership.Member { return m.members }

func (m *member) PromoteMember(_ context.Context, token string, id ids.Member) ([]membership.Member, error) {
	m.promoted = fmt.Sprintf("%s %d", token, id)
	return m.members, m.promoteErr
}

func (m *member) HashKV(_ context.Context, rev ids.Revision) (mvcc.HashResult, error) {
	if rev > 5 {
		return mvcc.HashResult{}, mvcc.ErrFutureRev
	}
	return mvcc.HashResult{CurrentRev: 5, Hash: 1084519789, CompactRev: -1, HashRev: rev}, m.hashErr
}

func (m *member) Digest(from ids.Index) digest.Report {
	return digest.Report{Member: 1, Began: from, Points: []digest.Point{{Index: from}, {Index: from + 1, State: 2, V2: 3}}}
}

func (m *member) DowngradeEnabled(ctx context.Context) (bool, error) {
	if _, ok := ctx.Deadline(); !ok {
		return false, errors.New("a read without an end")
	}
	return true, m.downgradeErr
}

// request is one line of a test: a request and the expected response.
// Header names a header and its value, "Name: value".
type request struct {
	method, target string
	body           string
	send           string // header of the request
	status         int
	want           string // body
	header         string // header of the answer
}

func (r request) run(t *testing.T, h http.Handler) {
	t.Helper()
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	req := httptest.NewRequestWithContext(t.Context(), method, r.target, strings.NewReader(r.body))
	if name, value, ok := strings.Cut(r.send, ": "); ok {
		req.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if w.Code != r.status || w.Body.String() != r.want {
		t.Errorf("%s %s: got %d %q, want %d %q", method, r.target, w.Code, w.Body, r.status, r.want)
	}
	if name, value, ok := strings.Cut(r.header, ": "); ok && w.Header().Get(name) != value {
		t.Errorf("%s %s: header %s is %q, want %q", method, r.target, name, w.Header().Get(name), value)
	}
}

func TestPeer(t *testing.T) {
	m := &member{cluster: "3.7.0", members: []membership.Member{{ID: 1, PeerURLs: []string{"http://a:1"}, Name: "a"}}}
	h := NewHandler(m, Options{Logger: zap.NewNop(), RequestTimeout: time.Second, Raft: &receiver{Sender: self}, Leases: &leases{}})
	const id = "X-Etcd-Cluster-ID: cdf818194e3a8c32"
	for _, r := range []request{
		{target: "/members", status: 200, want: `[{"id":1,"peerURLs":["http://a:1"],"name":"a"}]` + "\n", header: id},
		{target: "/members", status: 200, want: `[{"id":1,"peerURLs":["http://a:1"],"name":"a"}]` + "\n", header: "Content-Type: application/json"},
		{method: "POST", target: "/members", status: 405, want: "Method Not Allowed\n", header: "Allow: GET"},
		{target: "/members/", status: 404, want: "404 page not found\n"},
		{target: "/members/promote/1", status: 405, want: "Method Not Allowed\n", header: "Allow: POST"},
		{method: "POST", target: "/members/promote/x", status: 404, want: "member x not found in cluster\n", header: id},
		{method: "POST", target: "/members/promote/", status: 404, want: "member  not found in cluster\n", header: id},
		{method: "POST", target: "/members/promote/a/b", status: 404, want: "member a/b not found in cluster\n", header: id},
		{method: "POST", target: "/members/promote/18446744073709551615", send: "Authorization: tok", status: 200, want: `[{"id":1,"peerURLs":["http://a:1"],"name":"a"}]` + "\n"},
		{target: "/members/hashkv", status: 400, want: "error unmarshalling request\n"},
		{target: "/members/hashkv", body: `{"revision":6}`, status: 400, want: "mvcc: required revision is a future revision\n"},
		{target: "/members/hashkv", body: `{"revision":3}`, status: 200, header: id,
			want: `{"header":{"revision":5},"hash":1084519789,"compact_revision":-1,"hash_revision":3}`},
		{target: "/members/hashkv", body: `{"revision":3}`, send: id, status: 200,
			want: `{"header":{"revision":5},"hash":1084519789,"compact_revision":-1,"hash_revision":3}`},
		{target: "/members/hashkv", body: `{"revision":3}`, send: "X-Etcd-Cluster-ID: 1", status: 412, want: "cluster ID mismatch\n"},
		{target: "/members/hashkv", body: strings.Repeat(" ", maxRequest+1), status: 400, want: "error reading body\n"},
		{target: "/members/digest?from=7", send: "X-Etcd-Cluster-ID: 1", status: 412, want: "cluster ID mismatch\n"},
		{target: "/members/digest", status: 400, want: "from is not an index\n"},
		{target: "/members/digest?from=-1", status: 400, want: "from is not an index\n"},
		{method: "POST", target: "/members/digest?from=7", status: 405, want: "Method Not Allowed\n"},
		{method: "POST", target: "/members/hashkv", status: 405, want: "Method Not Allowed\n"},
		{target: "/downgrade/enabled", status: 200, want: "true", header: id},
		{target: "/downgrade/enabled", status: 200, want: "true", header: "Content-Type: text/plain"},
		{target: "/raft", status: 405, want: "Method Not Allowed\n"},
		{target: "/raft/stream/msgapp/1", status: 412, want: "incompatible version\n", header: id},
		{target: "/raft/snapshots", status: 404, want: "404 page not found\n"},
		{method: "POST", target: "/raft/snapshot", status: 412, want: "incompatible version\n"},
		{target: "/leases", status: 405, want: "Method Not Allowed\n"},
		{target: "/health", status: 404, want: "404 page not found\n"},
		{target: "/metrics", status: 404, want: "404 page not found\n"},
	} {
		r.run(t, h)
	}
	if m.promoted != "tok 18446744073709551615" {
		t.Errorf("promoted %q", m.promoted)
	}
	for _, known := range promoteRefusals {
		m.promoteErr = fmt.Errorf("promote: %w", known.err)
		request{method: "POST", target: "/members/promote/7", status: known.status, want: known.err.Error() + "\n"}.run(t, h)
	}
	m.promoteErr = errors.New("anything else")
	request{method: "POST", target: "/members/promote/7", status: 500, want: `{"message":"Internal Server Error"}`}.run(t, h)
	m.downgradeErr = errors.New("etcdserver: request timed out")
	request{target: "/downgrade/enabled", status: 500, want: "failed linearized read: etcdserver: request timed out\n"}.run(t, h)
}

// TestBothHalves sends every query of a client to a handler, with success and refusal:
// each half understands the other.
func TestBothHalves(t *testing.T) {
	m := &member{cluster: "3.7.0", members: []membership.Member{
		{ID: 1, PeerURLs: []string{"http://a:1"}, Name: "a", ClientURLs: []string{"http://a:2"}}, {ID: 7, PeerURLs: []string{"http://b:1", "http://b:2"}, IsLearner: true}}}
	s := httptest.NewServer(NewHandler(m, Options{Logger: zap.NewNop(), RequestTimeout: time.Minute, Raft: &receiver{Sender: self}, Leases: &leases{}}))
	defer s.Close()
	c, ctx, urls := newClient(t), t.Context(), []string{s.URL}
	check := func(what string, got, want any, err, wantErr error) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) || !errors.Is(err, wantErr) || err != nil && wantErr == nil {
			t.Errorf("%s: %v, %v; want %v, %v", what, got, err, want, wantErr)
		}
	}
	ms, id, err := c.Members(ctx, urls, time.Minute)
	check("members", ms, m.members, err, nil)
	check("cluster", id, m.ClusterID(), err, nil)
	v, err := c.Version(ctx, urls, time.Minute)
	check("version", v, Versions{Server: build.EtcdVersion, Cluster: "3.7.0", Storage: "3.7.0", Quorate: build.Version}, err, nil)
	on, err := c.DowngradeEnabled(ctx, urls, time.Minute)
	check("downgrade", on, true, err, nil)
	ms, err = c.Promote(ctx, s.URL, 1<<63, "tok")
	check("promote", ms, m.members, err, nil)
	check("promoted", m.promoted, fmt.Sprint("tok ", uint64(1)<<63), nil, nil)
	for _, known := range promoteRefusals {
		m.promoteErr = fmt.Errorf("why: %w", known.err)
		_, err := c.Promote(ctx, s.URL, 7, "")
		check("refused promotion", "", "", err, known.err)
	}
	want := mvcc.HashResult{CurrentRev: 5, Hash: 1084519789, CompactRev: -1, HashRev: 3}
	hash, err := c.HashKV(ctx, s.URL, id, 3)
	check("hash", hash, want, err, nil)
	_, err = c.HashKV(ctx, s.URL, id, 6)
	check("hash of the future", "", "", err, mvcc.ErrFutureRev)
	_, err = c.HashKV(ctx, s.URL, id+1, 3)
	check("hash of another cluster", "", "", err, ErrOtherCluster)
	m.hashErr = fmt.Errorf("hash: %w", mvcc.ErrCompacted)
	_, err = c.HashKV(ctx, s.URL, id, 3)
	check("hash of what is compacted", "", "", err, mvcc.ErrCompacted)
	report, err := c.Digest(ctx, s.URL, id, 7)
	check("digest", report, m.Digest(7), err, nil)
	_, err = c.Digest(ctx, s.URL, id+1, 7)
	check("digest of another cluster", "", "", err, ErrOtherCluster)
	etcd := httptest.NewServer(http.NotFoundHandler())
	defer etcd.Close()
	_, err = c.Digest(ctx, etcd.URL, id, 7)
	check("digest of a member without", "", "", err, ErrNoDigest)
}
