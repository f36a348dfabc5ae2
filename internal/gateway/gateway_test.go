package gateway

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// echo replies with what it received: a put with the sizes of its request and the token, a
// keepalive with its ID.
type echo struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
}

func (echo) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	token := strings.Join(md.Get("authorization"), ",")
	return &pb.PutResponse{Header: &pb.ResponseHeader{Revision: int64(len(r.Value)), ClusterId: uint64(len(token))}}, nil
}

func (echo) LeaseKeepAlive(s pb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		md, _ := metadata.FromIncomingContext(s.Context())
		if err := s.Send(&pb.LeaseKeepAliveResponse{ID: r.ID, TTL: int64(len(strings.Join(md.Get("authorization"), ",")))}); err != nil {
			return err
		}
	}
}

func serve(t *testing.T, max int64) *httptest.Server {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	pb.RegisterKVServer(s, echo{})
	pb.RegisterLeaseServer(s, echo{})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h, err := New(t.Context(), conn, Options{MaxMessage: max})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(h)
	t.Cleanup(web.Close)
	return web
}

func post(t *testing.T, url, body string, header http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.ReplaceAll(string(b), " ", "")
}

func TestToken(t *testing.T) {
	web := serve(t, 0)
	code, body := post(t, web.URL+"/v3/kv/put", `{"key":"YQ=="}`, http.Header{"Authorization": {"four"}})
	if want := `{"header":{"cluster_id":"4"}}`; code != 200 || body != want {
		t.Errorf("got %d %s, want %s", code, body, want)
	}
}

// TestMessageBound checks that a single message is limited; TestSocket sends several.
func TestMessageBound(t *testing.T) {
	const bound = 2000
	web := serve(t, bound)
	long := func(n int) string { return `{"key":"YQ==","value":"` + strings.Repeat("AAAA", n) + `"}` }
	if code, body := post(t, web.URL+"/v3/kv/put", long(400), nil); code != 200 || !strings.Contains(body, `"1200"`) {
		t.Errorf("a message below the bound: %d %s", code, body)
	}
	if code, body := post(t, web.URL+"/v3/kv/put", long(5000), nil); code != 400 || !strings.Contains(body, "requestislargerthan2000bytes") {
		t.Errorf("a message above the bound: %d %s", code, body)
	}
}

func dialSocket(t *testing.T, web *httptest.Server, header http.Header) (*websocket.Conn, *http.Response) {
	t.Helper()
	conn, resp, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(web.URL, "http")+"/v3/lease/keepalive", header)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	return conn, resp
}

func TestSocket(t *testing.T) {
	web := serve(t, 2000)
	for _, tt := range []struct {
		header http.Header
		token  string
	}{
		{nil, ""},
		{http.Header{"Sec-Websocket-Protocol": {"Bearer, secret"}}, "Bearer secret"},
		{http.Header{"Cookie": {"token=biscuit"}}, "Bearer biscuit"},
	} {
		conn, resp := dialSocket(t, web, tt.header)
		if got, want := resp.Header.Get("Sec-Websocket-Protocol") != "", tt.header.Get("Sec-Websocket-Protocol") != ""; got != want {
			t.Errorf("%v: subprotocol answered: %v", tt.header, got)
		}
		for range 500 { // more than a single message may have
			if err := conn.WriteMessage(websocket.TextMessage, []byte(`{"ID":"7"}`)); err != nil {
				t.Fatal(err)
			}
			_, msg, err := conn.ReadMessage()
			want := `"ID":"7"`
			if tt.token != "" {
				want = `"TTL":"` + string(rune('0'+len(tt.token)/10)) + string(rune('0'+len(tt.token)%10)) + `"`
			}
			if err != nil || !strings.Contains(strings.ReplaceAll(string(msg), " ", ""), want) {
				t.Fatalf("%v: got %s, %v; want %s in it", tt.header, msg, err, want)
			}
		}
	}
	conn, _ := dialSocket(t, web, nil)
	conn.WriteMessage(websocket.TextMessage, make([]byte, 3000))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseMessageTooBig) {
		t.Errorf("a message above the bound: %v", err)
	}
}
