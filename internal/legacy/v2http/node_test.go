package v2http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"

	"quorate/internal/engine/mem"
	"quorate/internal/httpapi"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
)

// node is a Backend of one member: the real store, which receives requests in the encoded
// form in which the log has them. Time advances by sleep only.
type node struct {
	t     testing.TB
	now   atomic.Int64
	eng   *mem.Engine
	store *v2store.Store

	mu      sync.Mutex // one request at a time is applied
	commit  atomic.Uint64
	lead    atomic.Uint64
	doErr   error // of V2Do, unless nil
	all     []membership.Member
	removed map[ids.Member]bool
}

const (
	selfID  = 0x8e9e05c52164694d
	oldID   = 0xbad
	bcryptC = bcrypt.MinCost // the real cost belongs to the server
)

func newNode(t testing.TB) *node {
	t.Helper()
	m := &node{t: t, eng: mem.New(), removed: map[ids.Member]bool{oldID: true},
		all: []membership.Member{{ID: selfID, Name: "default", PeerURLs: []string{"http://127.0.0.1:2380"}, ClientURLs: []string{"http://127.0.0.1:2379"}}}}
	m.now.Store(time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC).UnixNano())
	m.lead.Store(selfID)
	m.commit.Store(4)
	var err error
	if m.store, err = v2store.Load(m.eng, v2store.Options{Now: m.clock}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.store.Close)
	b := m.eng.NewBatch()
	m.store.Step(b, 3) // as a founding member does
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *node) clock() time.Time { return time.Unix(0, m.now.Load()) }

// sleep advances the time, while the leader sweeps every half second.
func (m *node) sleep(d time.Duration) {
	for ; d > 0; d -= time.Second / 2 {
		m.now.Add(int64(min(d, time.Second/2)))
		if _, err := m.V2Do(context.Background(), &v2request.Request{Method: "SYNC"}); err != nil {
			m.t.Error(err)
		}
	}
}

func (m *node) V2Do(ctx context.Context, r *v2request.Request) (*v2store.Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case m.doErr != nil:
		return nil, m.doErr
	case r.Method == "GET" || r.Method == "QGET":
		return m.store.Get(r.Path, r.Recursive, r.Sorted)
	}
	m.commit.Add(1)
	logged := *r
	logged.ID, logged.Time = m.commit.Load(), m.now.Load()
	read, ok, err := v2request.Parse(logged.Marshal())
	if !ok || err != nil {
		return nil, fmt.Errorf("entry %+v is not read again: %v", logged, err)
	}
	b := m.eng.NewBatch()
	ev, err := m.store.Apply(b, read)
	if cerr := b.Commit(); cerr != nil {
		return nil, cerr
	}
	return ev, err
}

func (m *node) V2Watch(path string, recursive, stream bool, since uint64) (*v2store.Watcher, error) {
	return m.store.Watch(path, recursive, stream, since)
}
func (m *node) V2Stats() []byte { return m.store.StatsJSON() }

func (m *node) V2HashPassword(ctx context.Context, password string) ([]byte, error) {
	return bcrypt.GenerateFromPassword([]byte(password), bcryptC)
}
func (m *node) V2PasswordMatches(ctx context.Context, hash []byte, password string) (bool, error) {
	return bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil, nil
}

func (m *node) SelfStats() []byte {
	return []byte(`{"name":"default","id":"8e9e05c52164694d","state":"StateLeader","startTime":"2026-03-01T12:00:00Z","leaderInfo":` +
		`{"leader":"8e9e05c52164694d","uptime":"1s","startTime":"2026-03-01T12:00:00Z"},"recvAppendRequestCnt":0,"sendAppendRequestCnt":0}`)
}
func (m *node) LeaderStats() []byte {
	if m.lead.Load() != selfID {
		return nil
	}
	return []byte(`{"leader":"8e9e05c52164694d","followers":{}}`)
}

func (m *node) NoRoom() string               { return "" }
func (m *node) ClusterID() ids.Cluster       { return 0xcdf818194e3a8c32 }
func (m *node) Term() ids.Term               { return 2 }
func (m *node) CommittedIndex() ids.Index    { return ids.Index(m.commit.Load()) }
func (m *node) Leader() ids.Member           { return ids.Member(m.lead.Load()) }
func (m *node) Members() []membership.Member { return m.all }
func (m *node) IsRemoved(id ids.Member) bool { return m.removed[id] }

// The errors are those of the server; refuse returns another one.
const refuse = "http://refuse:1"

func (m *node) MemberAdd(_ context.Context, urls []string, learner bool) (*pb.Member, []*pb.Member, error) {
	if slices.Contains(urls, refuse) || learner {
		return nil, nil, rpctypes.ErrGRPCUnhealthy
	}
	x := membership.NewMember(urls, false, m.clock())
	for _, y := range m.all {
		if y.ID == x.ID {
			return nil, nil, rpctypes.ErrGRPCMemberExist
		}
		if slices.Contains(y.PeerURLs, urls[0]) {
			return nil, nil, rpctypes.ErrGRPCPeerURLExist
		}
	}
	m.all = append(m.all, x)
	return &pb.Member{ID: uint64(x.ID), PeerURLs: urls}, nil, nil
}

func (m *node) find(id ids.Member) int {
	return slices.IndexFunc(m.all, func(x membership.Member) bool { return x.ID == id })
}

func (m *node) MemberRemove(_ context.Context, id ids.Member) ([]*pb.Member, error) {
	i := m.find(id)
	switch {
	case i < 0:
		return nil, rpctypes.ErrGRPCMemberNotFound
	case len(m.all) == 1:
		return nil, errors.New("etcdserver: re-configuration failed due to not enough started members")
	}
	m.all = slices.Delete(slices.Clone(m.all), i, i+1)
	m.removed[id] = true
	return nil, nil
}

func (m *node) MemberUpdate(_ context.Context, id ids.Member, urls []string) ([]*pb.Member, error) {
	i := m.find(id)
	if i < 0 {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	for j, y := range m.all {
		if j != i && slices.Contains(y.PeerURLs, urls[0]) {
			return nil, rpctypes.ErrGRPCPeerURLExist
		}
	}
	m.all = slices.Clone(m.all)
	m.all[i].PeerURLs = urls
	return nil, nil
}

// The remaining methods that httpapi calls, for /health and /version.
func (m *node) Alarms() []*pb.AlarmMember { return nil }
func (m *node) IsLearner() bool           { return false }
func (m *node) CheckRead(context.Context, bool) error {
	return errors.New("not through the v2 store")
}
func (m *node) Versions() (cluster, storage string) { return "3.5.0", "" }
func (m *node) RaftStatus() json.RawMessage         { return json.RawMessage(`{}`) }
func (m *node) checkV2(ctx context.Context) error {
	_, err := m.V2Do(ctx, &v2request.Request{Method: "QGET", Path: "/"})
	return err
}

func (m *node) handler(o Options) http.Handler {
	o.Logger, o.RequestTimeout, o.Now = zap.NewNop(), time.Minute, m.clock
	h := NewHandler(m, o)
	return httpapi.NewClientHandler(m, httpapi.Options{Logger: zap.NewNop(), RequestTimeout: time.Minute, CheckV2: m.checkV2,
		Extra: map[string]http.Handler{Prefix: h, Prefix + "/": h}})
}

// ask makes one request, without a network, and returns its answer as "status body"; body
// may begin with "@type " for a content type other than that of a form.
func ask(t testing.TB, h http.Handler, method, target, user, body string) string {
	t.Helper()
	kind := "application/x-www-form-urlencoded"
	if rest, ok := strings.CutPrefix(body, "@"); ok {
		kind, body, _ = strings.Cut(rest, " ")
	}
	req := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if body != "" {
		req.Header.Set("Content-Type", kind)
	}
	if name, password, ok := strings.Cut(user, ":"); ok {
		req.SetBasicAuth(name, password)
	} else if user != "" {
		req.Header.Set("Authorization", user)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return fmt.Sprintf("%d %s", w.Code, strings.TrimSpace(w.Body.String()))
}

// open makes a request over a network; it returns once the answer has begun.
func open(t testing.TB, s *httptest.Server, target string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func rest(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
