package peerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

func newClient(t *testing.T) *Client {
	c := NewClient(&http.Client{Transport: &http.Transport{}})
	t.Cleanup(c.Close)
	return c
}

// peerPort serves a fixed text for each path; a text such as "404 no" sets the
// status.
func peerPort(t *testing.T, answers map[string]string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a, ok := answers[r.Method+" "+r.URL.Path+" "+string(body)]
		if !ok {
			http.Error(w, "unexpected "+r.Method+" "+r.URL.Path+" "+string(body), 599)
			return
		}
		w.Header().Set(HeaderCluster, "cdf818194e3a8c32")
		code := 200
		if _, err := fmt.Sscanf(a, "%3d ", &code); err == nil {
			http.Error(w, a[4:], code)
			return
		}
		io.WriteString(w, a)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestQuestions(t *testing.T) {
	ctx := context.Background()
	c := newClient(t)
	bad := peerPort(t, map[string]string{"GET /members ": "{", "GET /version ": "404 no", "GET /downgrade/enabled ": "maybe"})
	empty := peerPort(t, map[string]string{"GET /members ": "[]"})
	good := peerPort(t, map[string]string{
		"GET /members ":                       `[{"id":9,"peerURLs":["http://b:1"]},{"id":3,"peerURLs":["http://a:1"],"name":"a","clientURLs":["http://a:2"]}]` + "\n",
		"GET /version ":                       `{"etcdserver":"3.6.14","etcdcluster":"3.6.0","storage":"3.6.0"}`,
		"GET /downgrade/enabled ":             "true",
		"POST /members/promote/9 ":            `[{"id":9,"peerURLs":["http://b:1"]}]`,
		"POST /members/promote/1 ":            "404 membership: ID not found",
		"POST /members/promote/2 ":            "412 membership: can only promote a learner member",
		"POST /members/promote/3 ":            "412 etcdserver: can only promote a learner member which is in sync with leader",
		"POST /members/promote/4 ":            "408 slow",
		`GET /members/hashkv {"revision":5}`:  `{"header":{"revision":7},"hash":4294967295,"compact_revision":-1,"hash_revision":5}`,
		`GET /members/hashkv {"revision":99}`: "400 mvcc: required revision is a future revision",
		`GET /members/hashkv {"revision":1}`:  "400 mvcc: required revision has been compacted",
		`GET /members/hashkv {"revision":2}`:  "412 whatever",
		`GET /members/hashkv {"revision":3}`:  "500 no",
	})
	urls := []string{"http://127.0.0.1:1", bad, empty, good}
	ms, id, err := c.Members(ctx, urls, time.Second)
	want := []membership.Member{{ID: 3, PeerURLs: []string{"http://a:1"}, Name: "a", ClientURLs: []string{"http://a:2"}}, {ID: 9, PeerURLs: []string{"http://b:1"}}}
	if err != nil || id != 0xcdf818194e3a8c32 || !reflect.DeepEqual(ms, want) {
		t.Errorf("members %v of %s, %v", ms, id, err)
	}
	if _, _, err := c.Members(ctx, urls[:3], time.Second); err == nil || !strings.Contains(err.Error(), "no members in the answer") {
		t.Errorf("no answer: %v", err)
	}
	v, err := c.Version(ctx, urls, time.Second)
	if err != nil || v != (Versions{Server: "3.6.14", Cluster: "3.6.0", Storage: "3.6.0"}) {
		t.Errorf("version %v %v", v, err)
	}
	if on, err := c.DowngradeEnabled(ctx, urls, time.Second); !on || err != nil {
		t.Errorf("downgrade %v %v", on, err)
	}
	if ms, err := c.Promote(ctx, good, 9, "token"); err != nil || len(ms) != 1 {
		t.Errorf("promote %v %v", ms, err)
	}
	for id, want := range []error{1: membership.ErrIDNotFound, 2: membership.ErrMemberNotLearner, 3: membership.ErrLearnerNotReady, 4: errAny} {
		if want == nil {
			continue
		}
		if _, err := c.Promote(ctx, good, ids.Member(id), ""); !errors.Is(err, want) && (want != errAny || refused(err) == nil) {
			t.Errorf("promote %d: %v, want %v", id, err, want)
		}
	}
	h, err := c.HashKV(ctx, good, 0xcdf818194e3a8c32, 5)
	if err != nil || h != (mvcc.HashResult{Hash: 4294967295, CurrentRev: 7, CompactRev: -1, HashRev: 5}) {
		t.Errorf("hash %+v %v", h, err)
	}
	for rev, want := range map[ids.Revision]error{99: mvcc.ErrFutureRev, 1: mvcc.ErrCompacted, 2: ErrOtherCluster} {
		if _, err := c.HashKV(ctx, good, 1, rev); err != want {
			t.Errorf("hash at %d: %v, want %v", rev, err, want)
		}
	}
	if _, err := c.HashKV(ctx, good, 1, 3); err == nil || err.Error() != "unknown error: no" {
		t.Errorf("another refusal: %v", err)
	}
}

// errAny stands for a refusal after which the caller retries.
var errAny = errors.New("any")

// leases is a LeaseServer with lease 7 only.
type leases struct {
	behind  bool // WaitApplied never returns in time
	demoted bool
}

func (l *leases) WaitApplied(ctx context.Context, id lease.ID) error {
	if l.behind {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (l *leases) RenewLease(_ context.Context, id lease.ID) (int64, error) {
	switch {
	case l.demoted:
		return 0, lease.ErrNotPrimary
	case id != 7:
		return 0, fmt.Errorf("renew: %w", lease.ErrLeaseNotFound)
	}
	return 60, nil
}

func (l *leases) LeaseTimeToLive(ctx context.Context, id lease.ID, keys bool) (LeaseTTL, error) {
	if _, err := l.RenewLease(ctx, id); err != nil {
		return LeaseTTL{}, err
	}
	r := LeaseTTL{TTL: 59, GrantedTTL: 60}
	if keys {
		r.Keys = [][]byte{[]byte("a"), []byte("b")}
	}
	return r, nil
}

func leaseHandler(s LeaseServer) http.Handler {
	return NewHandler(&member{}, Options{Logger: zap.NewNop(), Raft: &receiver{Sender: self}, Leases: s})
}

func TestLeaseHandler(t *testing.T) {
	renew := func(id int64) []byte { b, _ := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: id}); return b }
	ttl := func(id int64) []byte {
		b, _ := proto.Marshal(&pb.LeaseTimeToLiveRequest{ID: id})
		return wrapLease(b)
	}
	for _, c := range []struct {
		method, path string
		body         []byte
		s            leases
		code         int
		text         string
	}{
		{"GET", "/leases", nil, leases{}, 405, "Method Not Allowed\n"},
		{"POST", "/leases", renew(7), leases{}, 200, "\x10\x07\x18\x3c"},
		{"POST", "/leases", renew(8), leases{}, 404, "lease not found\n"},
		{"POST", "/leases", renew(7), leases{demoted: true}, 400, "not a primary lessor\n"},
		{"POST", "/leases", renew(7), leases{behind: true}, 408, "waiting for node to catch up its applied index has timed out\n"},
		{"POST", "/leases", []byte{0xff}, leases{}, 400, "error unmarshalling request\n"},
		{"POST", "/leases", make([]byte, maxRequest+1), leases{}, 413, "request body too large\n"},
		{"POST", "/leases/internal", ttl(7), leases{}, 200, "\x0a\x08\x0a\x00\x10\x07\x18\x3b\x20\x3c"},
		{"POST", "/leases/internal", ttl(8), leases{}, 404, "lease not found\n"},
		{"POST", "/leases/internal", ttl(7), leases{demoted: true}, 500, "not a primary lessor\n"},
		{"POST", "/leases/internal", nil, leases{}, 400, "error unmarshalling request\n"},
		{"POST", "/leases/other", nil, leases{}, 404, "404 page not found\n"},
	} {
		w := httptest.NewRecorder()
		leaseHandler(&c.s).ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(string(c.body))))
		if w.Code != c.code || w.Body.String() != c.text {
			t.Errorf("%s %s %x: %d %q, want %d %q", c.method, c.path, c.body[:min(8, len(c.body))], w.Code, w.Body, c.code, c.text)
		}
		if ct := w.Header().Get("Content-Type"); c.code == 200 && ct != "application/protobuf" {
			t.Errorf("content type %q", ct)
		}
	}
}

func TestLeaseClient(t *testing.T) {
	s := httptest.NewServer(leaseHandler(&leases{}))
	defer s.Close()
	old := httptest.NewServer(leaseHandler(&leases{demoted: true}))
	defer old.Close()
	c := newClient(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	rounds := 0
	leader := func(context.Context) ([]string, error) { // the leader changes after the first round
		if rounds++; rounds == 1 {
			return []string{"http://127.0.0.1:1", old.URL}, nil
		}
		return []string{"http://127.0.0.1:1", s.URL}, nil
	}
	if ttl, err := c.RenewLease(ctx, leader, 7); ttl != 60 || err != nil || rounds != 2 {
		t.Errorf("renew: %d %v after %d rounds", ttl, err, rounds)
	}
	if _, err := c.RenewLease(ctx, leader, 8); !errors.Is(err, lease.ErrLeaseNotFound) {
		t.Errorf("renew of none: %v", err)
	}
	l, err := c.LeaseTimeToLive(ctx, leader, 7, true)
	if err != nil || !reflect.DeepEqual(l, LeaseTTL{59, 60, [][]byte{[]byte("a"), []byte("b")}}) {
		t.Errorf("time to live: %+v %v", l, err)
	}
	none := errors.New("no leader")
	if _, err := c.RenewLease(ctx, func(context.Context) ([]string, error) { return nil, none }, 7); !errors.Is(err, none) {
		t.Errorf("no leader: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 120*time.Millisecond)
	defer cancel()
	if _, err := c.RenewLease(short, func(context.Context) ([]string, error) { return []string{old.URL}, nil }, 7); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("never a primary: %v", err)
	}
}

func FuzzLeaseInternal(f *testing.F) {
	f.Add(wrapLease([]byte{8, 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		inner, err := unwrapLease(b)
		if err == nil && len(inner) > len(b) {
			t.Fatal("more inside than outside")
		}
	})
}
