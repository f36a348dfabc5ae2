package transport

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// handshake sends a raw request with the given headers and returns the
// response.
func handshake(t *testing.T, n *node, method, path string, header map[string]string, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, n.url()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1)) // enough of a stream
	if resp.StatusCode != 200 {
		rest, _ := io.ReadAll(resp.Body)
		b = append(b, rest...)
	}
	return resp, string(b)
}

func TestHandshakes(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0x1f)
	n.AddPeer(2, []string{"http://127.0.0.1:1"})
	n.host.removed[9] = true
	base := map[string]string{headerFrom: "2", headerVersion: "3.5.33", headerMinVersion: "3.0.0", headerCluster: "abc", headerTo: "1f", headerPeerURLs: "http://127.0.0.1:1"}
	with := func(kv ...string) map[string]string {
		h := map[string]string{}
		for k, v := range base {
			h[k] = v
		}
		for i := 0; i < len(kv); i += 2 {
			if h[kv[i]] = kv[i+1]; kv[i+1] == "" {
				delete(h, kv[i])
			}
		}
		return h
	}
	vote, _ := appendMessage(nil, &raftpb.Message{Type: raftpb.MsgVote.Enum(), From: new(uint64(2)), To: new(uint64(0x1f)), Term: new(uint64(3))})
	other, _ := appendMessage(nil, &raftpb.Message{Type: raftpb.MsgVote.Enum(), From: new(uint64(2)), To: new(uint64(7))})
	gone, _ := appendMessage(nil, &raftpb.Message{Type: raftpb.MsgVote.Enum(), From: new(uint64(9)), To: new(uint64(0x1f))})
	snap, _ := appendPrefixed(nil, snapMessage(2, 0x1f, 5))
	notSnap := append(unhex("000000000000000"+fmt.Sprintf("%x", len(vote))), vote...)
	for _, c := range []struct {
		method, path string
		header       map[string]string
		body         string
		code         int
		text         string
	}{
		{"GET", "/raft/stream/msgapp/2", base, "", 200, "\x00"},
		{"GET", "/raft/stream/message/2", base, "", 200, "\x00"},
		{"GET", "/raft/stream/message/2", with(headerVersion, "4.0.0"), "", 200, "\x00"},
		{"POST", "/raft/stream/message/2", base, "", 405, "Method Not Allowed\n"},
		{"GET", "/raft/stream/message/2", with(headerVersion, ""), "", 412, "incompatible version\n"},
		{"GET", "/raft/stream/message/2", with(headerVersion, "2.3.0"), "", 412, "incompatible version\n"},
		{"GET", "/raft/stream/message/2", with(headerVersion, "nonsense"), "", 412, "incompatible version\n"},
		{"GET", "/raft/stream/message/2", with(headerMinVersion, "3.8.0"), "", 412, "incompatible version\n"},
		{"GET", "/raft/stream/message/2", with(headerMinVersion, "3.7.9"), "", 200, "\x00"},
		{"GET", "/raft/stream/message/2", with(headerCluster, "ABC"), "", 412, "cluster ID mismatch\n"},
		{"GET", "/raft/stream/message/2", with(headerCluster, ""), "", 412, "cluster ID mismatch\n"},
		{"GET", "/raft/stream/other/2", base, "", 404, "invalid path\n"},
		{"GET", "/raft/stream/message/xyz", base, "", 404, "invalid from\n"},
		{"GET", "/raft/stream/message/9", base, "", 410, "removed member\n"},
		{"GET", "/raft/stream/message/5", base, "", 404, "error sender not found\n"},
		{"GET", "/raft/stream/message/2", with(headerTo, "01f"), "", 412, "to field mismatch\n"},
		{"GET", "/raft", base, "", 405, "Method Not Allowed\n"},
		{"POST", "/raft", base, string(vote), 204, ""},
		{"POST", "/raft", with(headerCluster, "1"), string(vote), 412, "cluster ID mismatch\n"},
		{"POST", "/raft", base, "\xff\xff", 400, "error unmarshalling raft message\n"},
		{"POST", "/raft", base, string(other), 500, "error processing raft message\n"},
		{"POST", "/raft", base, string(gone), 500, "error processing raft message\n"},
		{"POST", "/raft", base, string(snap[8:]), 500, "error processing raft message\n"},
		{"GET", "/raft/snapshot", base, "", 405, "Method Not Allowed\n"},
		{"POST", "/raft/snapshot", with(headerVersion, "1.0.0"), "", 412, "incompatible version\n"},
		{"POST", "/raft/snapshot", base, string(snap) + "database", 204, ""},
		{"POST", "/raft/snapshot", base, "short", 400, "failed to decode raft message (unexpected EOF)\n"},
		{"POST", "/raft/snapshot", base, string(notSnap), 400, "wrong raft message type\n"},
		{"GET", "/raft/probing", nil, "", 200, "{"},
		{"GET", "/raft/nothing", base, "", 404, "404 page not found\n"},
	} {
		resp, text := handshake(t, n, c.method, c.path, c.header, c.body)
		name := fmt.Sprintf("%s %s %v", c.method, c.path, c.header)
		if resp.StatusCode != c.code || text != c.text {
			// The first byte of a stream is that of its heartbeat.
			t.Errorf("%s: %d %q, want %d %q", name, resp.StatusCode, text, c.code, c.text)
		}
		if c.code == 405 {
			if allow := resp.Header.Get("Allow"); allow != map[string]string{"GET": "POST", "POST": "GET"}[c.method] {
				t.Errorf("%s: Allow %q", name, allow)
			}
		} else if strings.HasPrefix(c.path, "/raft/stream") {
			if resp.Header.Get(headerVersion) != "3.7.3" || resp.Header.Get(headerCluster) != "abc" {
				t.Errorf("%s: headers %v", name, resp.Header)
			}
		} else if c.path == "/raft" || c.path == "/raft/snapshot" {
			if resp.Header.Get(headerCluster) != "abc" {
				t.Errorf("%s: headers %v", name, resp.Header)
			}
		}
	}
	if m := receive(t, "the vote", n.host.msgs); m.GetTerm() != 3 {
		t.Errorf("%v", m)
	}
	if n.table.Load().remotes[5] == nil {
		t.Error("the unknown sender did not become a remote")
	}
}

// Our requests for streams, as another member sees them.
func TestDialedRequests(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0x1f)
	type request struct{ method, path, headers string }
	seen := make(chan request, 64)
	var srv http.Server
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		var hs []string
		for _, k := range []string{headerFrom, headerVersion, headerMinVersion, headerCluster, headerTo, headerPeerURLs, "Content-Type"} {
			hs = append(hs, r.Header.Get(k))
		}
		select {
		case seen <- request{r.Method, r.URL.Path, strings.Join(hs, " ")}:
		default:
		}
		http.Error(w, "no", http.StatusNotFound)
	})
	l := listen(t, "127.0.0.1:0")
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	n.AddPeer(2, []string{"http://" + l.Addr().String()})
	n.Send([]*raftpb.Message{{Type: raftpb.MsgVote.Enum(), To: new(uint64(2)), From: new(uint64(0x1f))}})
	n.SendSnapshot(snapMessage(0x1f, 2, 3), io.NopCloser(strings.NewReader("db")))
	common := "1f 3.7.3 3.0.0 abc %s " + n.url() + " %s"
	want := map[request]bool{
		{"GET", "/raft/stream/msgapp/1f", fmt.Sprintf(common, "2", "")}:                 true,
		{"GET", "/raft/stream/message/1f", fmt.Sprintf(common, "2", "")}:                true,
		{"POST", "/raft", fmt.Sprintf(common, "", "application/protobuf")}:              true,
		{"POST", "/raft/snapshot", fmt.Sprintf(common, "", "application/octet-stream")}: true,
	}
	got := map[request]bool{}
	for len(got) < len(want) {
		r := receive(t, "requests", seen)
		if got[r] = true; !want[r] {
			t.Fatalf("request %+v", r)
		}
	}
	if r := receive(t, "snapshot report", n.host.snapshots); r != (snapshotReport{2, false}) {
		t.Errorf("%+v", r)
	}
}

// The dialer's interpretation of responses.
func TestStreamAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		version string
		code    int
		removed bool
	}{
		{"3.5.33", 410, true},
		{"", 410, false}, // a response without version is not from a member
		{"x", 410, false},
		{"3.7.3", 404, false},
		{"3.7.3", 412, false},
		{"3.7.3", 403, false},
	} {
		n := startNode(t, 1)
		tried := make(chan struct{}, 1024)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c.version != "" {
				w.Header().Set(headerVersion, c.version)
			}
			http.Error(w, "no", c.code)
			if strings.HasPrefix(r.URL.Path, "/raft/stream") {
				tried <- struct{}{}
			}
		})}
		l := listen(t, "127.0.0.1:0")
		done := make(chan struct{})
		go func() { defer close(done); srv.Serve(l) }()
		n.AddPeer(2, []string{"http://" + l.Addr().String()})
		for range 5 { // two streams, so at least one makes a third attempt
			receive(t, "dial", tried)
		}
		if got := len(n.host.selfRemoved) > 0; got != c.removed {
			t.Errorf("%+v: removed %v", c, got)
		}
		srv.Close()
		<-done
	}
}
