package grpcproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func newTestProxy() *Proxy {
	p := &Proxy{lg: zap.NewNop()}
	p.ctx, p.stop = context.WithCancelCause(context.Background())
	return p
}

// The metadata of a call that members need is forwarded, and nothing else.
func TestOnward(t *testing.T) {
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("token", "t", "hasleader", "true", "client-api-version", "3.7.3", "x", "y"))
	got, _ := metadata.FromOutgoingContext(onward(ctx))
	if want := "map[client-api-version:[3.7.3] hasleader:[true] token:[t]]"; fmt.Sprint(map[string][]string(got)) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	ctx = metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "other", "hasleader", "maybe"))
	if c := callerOf(ctx); c != (caller{token: "other"}) {
		t.Errorf("caller %+v", c)
	}
	if md, ok := metadata.FromOutgoingContext(onward(context.Background())); ok {
		t.Errorf("of nobody: %v", md)
	}
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{rpctypes.ErrPermissionDenied, codes.PermissionDenied, "etcdserver: permission denied"},
		{fmt.Errorf("wrapped: %w", rpctypes.ErrNoSpace), codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded"},
		{status.Error(codes.Unavailable, "x"), codes.Unavailable, "x"},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "context deadline exceeded"},
		{errors.New("something"), codes.Unknown, "something"},
	} {
		s := status.Convert(clientError(context.Background(), tc.err))
		if s.Code() != tc.code || s.Message() != tc.text {
			t.Errorf("%v: %v %q, want %v %q", tc.err, s.Code(), s.Message(), tc.code, tc.text)
		}
	}
	if err := clientError(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

// Calls in progress end with the proxy, and a panic ends only its own call.
func TestCallsEnd(t *testing.T) {
	p := newTestProxy()
	started := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := p.unary(context.Background(), nil, &grpc.UnaryServerInfo{}, func(ctx context.Context, _ any) (any, error) {
			close(started)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		done <- err
	}()
	<-started
	_, err := p.unary(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/s/m"}, func(context.Context, any) (any, error) { panic("no") })
	if status.Code(err) != codes.Internal {
		t.Errorf("after a panic: %v", err)
	}
	p.End()
	if err := get(t, done); !errors.Is(err, errStopped) {
		t.Errorf("at the end of the proxy: %v", err)
	}
}

func TestPaced(t *testing.T) {
	invoke := func(err error) grpc.UnaryInvoker {
		return func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return err }
	}
	began := time.Now()
	err := paced(context.Background(), "", nil, nil, nil, invoke(status.Error(codes.Unavailable, "")))
	if took := time.Since(began); status.Code(err) != codes.Unavailable || took < minFailure {
		t.Errorf("%v after %v", err, took)
	}
}

// A leased key is watched in the context of its read, and the watch must outlive the read.
func TestLasting(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "v"))
	l := newLasting(ctx)
	if l.Value(key{}) != "v" || l.Err() != nil {
		t.Error("not the values of the call")
	}
	cancel()
	get(t, l.Done())
	if !errors.Is(l.Err(), context.Canceled) {
		t.Errorf("ended with %v", l.Err())
	}
	l.detach()

	ctx, cancel = context.WithCancel(context.Background())
	l = newLasting(ctx)
	l.detach()
	cancel()
	if l.Err() != nil {
		t.Errorf("after the call: %v", l.Err())
	}
}

// lagging answers with one revision after the other, and then always with the last.
type lagging struct {
	clientv3.KV
	revs  []int64
	calls int
}

func (l *lagging) Do(_ context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	h := head(l.revs[min(l.calls, len(l.revs)-1)])
	l.calls++
	if op.IsGet() {
		return (&clientv3.GetResponse{Header: h}).OpResponse(), nil
	}
	return (&clientv3.PutResponse{Header: h}).OpResponse(), nil
}

// A read is never older than an earlier answer; a write is sent once in any case.
func TestOrdering(t *testing.T) {
	l := &lagging{revs: []int64{5, 7, 3, 4, 7, 2}}
	o := &orderedKV{KV: l, endpoints: func() []string { return []string{"a", "b"} }}
	for _, want := range []int64{5, 7, 7} { // the last after two tries
		r, err := o.Get(context.Background(), "k")
		if err != nil || r.Header.Revision != want {
			t.Fatalf("%v, %v, want %d", r, err, want)
		}
	}
	l.calls = 5
	if _, err := o.Do(context.Background(), clientv3.OpPut("k", "v")); err != nil || l.calls != 6 {
		t.Errorf("a write: %v, %d calls", err, l.calls-5)
	}
	if _, err := o.Get(context.Background(), "k"); !errors.Is(err, ordering.ErrNoGreaterRev) {
		t.Errorf("all lag behind: %v", err)
	}
	if tries := l.calls - 6; tries != 1+2*triesPerEndpoint {
		t.Errorf("%d tries", tries)
	}
	l.revs = append(l.revs, 8)
	l.calls = 5 // the first attempt still lags, and this read has all its attempts again
	if r, err := o.Get(context.Background(), "k"); err != nil || r.Header.Revision != 8 {
		t.Errorf("%v, %v", r, err)
	}
}

// counted counts the reads that it receives.
type counted struct {
	clientv3.KV
	n int
}

func (c *counted) Do(context.Context, clientv3.Op) (clientv3.OpResponse, error) {
	c.n++
	return clientv3.OpResponse{}, nil
}

func TestLeasedKeysAreBounded(t *testing.T) {
	leased, under := &counted{}, &counted{}
	l := &leasingKV{KV: leased, under: under, keys: map[string]struct{}{}}
	for i := range maxLeased {
		l.keys[fmt.Sprint(i)] = struct{}{}
	}
	for _, op := range []clientv3.Op{clientv3.OpGet("1"), clientv3.OpPut("new", ""), clientv3.OpGet("new", clientv3.WithPrefix()), clientv3.OpGet("new")} {
		if _, err := l.Do(context.Background(), op); err != nil {
			t.Fatal(err)
		}
	}
	if leased.n != 3 || under.n != 1 {
		t.Errorf("%d calls to the leasing client and %d past it, want 3 and 1", leased.n, under.n)
	}
}

// The list of proxies contains the registered ones and nothing else.
func TestRegistrations(t *testing.T) {
	s := &clusterServer{lg: zap.NewNop(), self: "here:1", hostname: "host", proxies: map[string]*pb.Member{}}
	list := func() string {
		r, err := s.MemberList(context.Background(), &pb.MemberListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, m := range r.Members {
			out = append(out, m.Name+"="+strings.Join(m.ClientURLs, ","))
		}
		return strings.Join(out, " ")
	}
	if got := list(); got != "host=here:1" {
		t.Errorf("alone: %q", got)
	}
	at := func(key, addr, meta string) *endpoints.Update {
		return &endpoints.Update{Op: endpoints.Add, Key: key, Endpoint: endpoints.Endpoint{Addr: addr, Metadata: meta}}
	}
	s.update([]*endpoints.Update{at("p/b", "b:1", `{"name":"y"}`), at("p/a", "a:1", `{"name":"x"}`), at("p/c", "c:1", "no JSON")})
	if got := list(); got != "x=a:1 y=b:1" {
		t.Errorf("two: %q", got)
	}
	s.update([]*endpoints.Update{{Op: endpoints.Delete, Key: "p/b"}, at("p/a", "a:2", `{"name":"z"}`)})
	if got := list(); got != "z=a:2" {
		t.Errorf("changed: %q", got)
	}
	for i := range maxProxies + 5 {
		s.update([]*endpoints.Update{at(fmt.Sprint("p/", i), "n:1", `{}`)})
	}
	if len(s.proxies) != maxProxies {
		t.Errorf("%d proxies are known", len(s.proxies))
	}
}

func TestCallLog(t *testing.T) {
	core, lines := observer.New(zap.InfoLevel)
	l := callLog{zap.New(core)}
	_, err := l.unary(context.Background(), &pb.AuthenticateRequest{Name: "n", Password: "secret"}, &grpc.UnaryServerInfo{FullMethod: "/etcdserverpb.Auth/Authenticate"},
		func(context.Context, any) (any, error) { return &pb.AuthenticateResponse{Token: "secret"}, nil })
	if err != nil {
		t.Fatal(err)
	}
	_, _ = l.unary(context.Background(), &pb.RangeRequest{Key: []byte("k")}, &grpc.UnaryServerInfo{FullMethod: "/etcdserverpb.KV/Range"},
		func(context.Context, any) (any, error) { return nil, errors.New("failed") })
	var all strings.Builder
	for _, e := range lines.All() {
		b, _ := json.Marshal(e.ContextMap())
		fmt.Fprintln(&all, e.Message, string(b))
	}
	for _, want := range []string{`"grpc.method":"Authenticate"`, `"grpc.service":"etcdserverpb.KV"`, `\"key\":\"aw==\"`, `"grpc.response.error":"failed"`} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("%s is missing in\n%s", want, &all)
		}
	}
	if strings.Contains(all.String(), "secret") {
		t.Errorf("a secret is in\n%s", &all)
	}
}

func TestPages(t *testing.T) {
	member := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "series of "+r.URL.Path) }))
	defer member.Close()
	g := Pages{Members: member.Client(), Scheme: "http", Logger: zap.NewNop()}
	page := func(h http.HandlerFunc, method string) string {
		w := httptest.NewRecorder()
		h(w, httptest.NewRequest(method, "/page", nil))
		return fmt.Sprint(w.Code, " ", strings.TrimSpace(w.Body.String()))
	}
	for _, endpoint := range []string{member.URL, strings.TrimPrefix(member.URL, "http://")} {
		if got := page(g.memberMetrics([]string{endpoint}), "GET"); got != "200 series of /metrics" {
			t.Errorf("%s: %s", endpoint, got)
		}
	}
	if got := page(g.memberMetrics([]string{"127.0.0.1:0"}), "GET"); got != "500 Internal server error" {
		t.Errorf("no member: %s", got)
	}
	if got := page(g.health(g.selfReason), "GET"); got != `503 {"health":"false","reason":"no connection to proxy"}` {
		t.Errorf("no address: %s", got)
	}
	if got := page(g.health(func(context.Context) string { return "" }), "GET"); got != `200 {"health":"true","reason":""}` {
		t.Errorf("all well: %s", got)
	}
	if got := page(g.health(nil), "POST"); got != "405 Method Not Allowed" {
		t.Errorf("POST: %s", got)
	}
	member.CloseClientConnections()
}
