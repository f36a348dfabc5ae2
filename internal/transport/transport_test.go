package transport

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host records what reaches it.
type host struct {
	msgs        chan *raftpb.Message
	unreachable chan uint64
	snapshots   chan snapshotReport
	selfRemoved chan error

	returned chan *raftpb.Message

	mu      sync.Mutex
	removed map[uint64]bool
	refuse  error // what Process answers

	snapBegun chan struct{}
	snapMsgs  chan *raftpb.Message
	snapData  chan []byte
	snapErrs  chan error
}

func newHost() *host {
	return &host{msgs: make(chan *raftpb.Message, 1<<16), unreachable: make(chan uint64, 1<<10), snapshots: make(chan snapshotReport, 16),
		selfRemoved: make(chan error, 1<<10), returned: make(chan *raftpb.Message, 1<<14), removed: map[uint64]bool{},
		snapBegun: make(chan struct{}, 16), snapMsgs: make(chan *raftpb.Message, 16), snapData: make(chan []byte, 16), snapErrs: make(chan error, 16)}
}

func (h *host) Process(m *raftpb.Message) error {
	h.mu.Lock()
	err := h.refuse
	h.mu.Unlock()
	if err == nil {
		h.msgs <- m
	}
	return err
}
func (h *host) ReportUnreachable(id uint64) {
	select {
	case h.unreachable <- id:
	default:
	}
}
func (h *host) Returned(m *raftpb.Message)        { h.returned <- m }
func (h *host) ReportSnapshot(id uint64, ok bool) { h.snapshots <- snapshotReport{id, ok} }
func (h *host) IsRemoved(id uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.removed[id]
}
func (h *host) SelfRemoved(err error) {
	select {
	case h.selfRemoved <- err:
	default:
	}
}
func (h *host) ReceiveSnapshot(_ context.Context, m *raftpb.Message, body io.Reader) error {
	h.snapBegun <- struct{}{}
	b, err := io.ReadAll(body)
	h.snapErrs <- err
	if err != nil {
		return err
	}
	h.snapMsgs <- m
	h.snapData <- b
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refuse
}

// node is a member on the loopback.
type node struct {
	*Transport
	host *host
	addr string
	tls  bool
	srv  *http.Server
	done chan struct{}
}

const testCluster = 0xabc

func startNode(t *testing.T, id uint64) *node {
	n := &node{host: newHost()}
	l := listen(t, "127.0.0.1:0")
	n.addr = l.Addr().String()
	var err error
	n.Transport, err = New(Config{ID: id, ClusterID: testCluster, PeerURLs: []string{n.url()}, Host: n.host, Version: "3.7.3"})
	if err != nil {
		t.Fatal(err)
	}
	n.serve(l)
	t.Cleanup(func() {
		n.Stop()
		n.close(t)
	})
	return n
}

func listen(t *testing.T, addr string) net.Listener {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (n *node) url() string {
	if n.tls {
		return "https://" + n.addr
	}
	return "http://" + n.addr
}

func (n *node) serve(l net.Listener) {
	n.srv = HTTPServer(n.Handler(), nil)
	n.done = make(chan struct{})
	go func() {
		defer close(n.done)
		n.srv.Serve(l)
	}()
}

func (n *node) close(t *testing.T) {
	if err := n.srv.Close(); err != nil {
		t.Error(err)
	}
	<-n.done
}

// connect makes all nodes peers of each other and waits for their streams.
func connect(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, a := range nodes {
		for _, b := range nodes {
			a.AddPeer(b.cfg.ID, []string{b.url()})
		}
	}
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				eventually(t, fmt.Sprintf("streams from %x to %x", a.cfg.ID, b.cfg.ID), func() bool { return a.linked(b.cfg.ID) })
			}
		}
	}
}

func (n *node) linked(id uint64) bool {
	p := n.table.Load().peers[id]
	return p != nil && p.links[kindMsgApp].Load() != nil && p.links[kindMessage].Load() != nil
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(9 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within 9 seconds", what)
		}
	}
}

func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(9 * time.Second):
		t.Fatalf("%s: nothing within 9 seconds", what)
		panic("unreachable")
	}
}

// travelling returns one valid message of every type that goes over streams.
func travelling(from, to uint64) []*raftpb.Message {
	var ms []*raftpb.Message
	for _, typ := range []raftpb.MessageType{raftpb.MsgProp, raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp,
		raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgTransferLeader, raftpb.MsgTimeoutNow, raftpb.MsgReadIndex,
		raftpb.MsgReadIndexResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp} {
		m := &raftpb.Message{Type: typ.Enum(), From: &from, To: &to, Term: new(uint64(5)), LogTerm: new(uint64(4)),
			Index: new(uint64(7)), Commit: new(uint64(6)), Context: []byte("12345678")}
		switch typ {
		case raftpb.MsgApp:
			m.Context = nil
			m.Entries = []*raftpb.Entry{entry(4, 8, "x"), entry(5, 9, "y")}
		case raftpb.MsgProp, raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
			m.Entries = []*raftpb.Entry{{Data: []byte("request")}}
		}
		ms = append(ms, m)
	}
	return ms
}

func expect(t *testing.T, h *host, want []*raftpb.Message) {
	t.Helper()
	left := slices.Clone(want)
	for len(left) > 0 {
		m := receive(t, fmt.Sprintf("%d more messages", len(left)), h.msgs)
		i := slices.IndexFunc(left, func(w *raftpb.Message) bool { return proto.Equal(m, w) })
		if i < 0 {
			t.Fatalf("unexpected %v", m)
		}
		left = slices.Delete(left, i, i+1)
	}
}

func TestExchange(t *testing.T) {
	t.Parallel()
	nodes := []*node{startNode(t, 0x1), startNode(t, 0xfd422379fda50e48), startNode(t, 0x3)}
	connect(t, nodes...)
	var want [3][]*raftpb.Message
	for i, a := range nodes {
		var out []*raftpb.Message
		for j, b := range nodes {
			if i == j {
				continue
			}
			for range 3 { // the repeated MsgApp takes another frame each time
				ms := travelling(a.cfg.ID, b.cfg.ID)
				out, want[j] = append(out, ms...), append(want[j], ms...)
			}
		}
		out = append(out, &raftpb.Message{To: new(uint64(0))}, &raftpb.Message{To: new(uint64(99))})
		a.Send(out)
	}
	for i, n := range nodes {
		expect(t, n.host, want[i])
		if n.ActivePeers() != 2 || n.ActiveSince(nodes[(i+1)%3].cfg.ID).IsZero() || !n.ActiveSince(n.cfg.ID).IsZero() {
			t.Errorf("node %x: %d active peers", n.cfg.ID, n.ActivePeers())
		}
	}
}

// A steady flow of MsgApp arrives complete, in order, and as AppEntries.
func TestAppendFlow(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	connect(t, a, b)
	const rounds, batch = 200, 20
	next := uint64(1)
	// A window of messages on the way, like raft's.
	got := 0
	for range rounds {
		var ms []*raftpb.Message
		for range batch {
			ms = append(ms, msgApp(1, 1, next-1, next-1, entry(1, next, strings.Repeat("v", int(next%2000)))))
			next++
		}
		a.Send(ms)
		for range batch {
			m := receive(t, "append", b.host.msgs)
			got++
			if m.GetIndex() != uint64(got-1) || len(m.Entries) != 1 || len(m.Entries[0].Data) != got%2000 {
				t.Fatalf("message %d is %v", got, m)
			}
		}
	}
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	connect(t, a, b)
	b.close(t)
	pb := a.table.Load().peers[2]
	old := pb.links[kindMessage].Load()
	pa := b.table.Load().peers[1]
	for k := range pa.links { // the server does not own the streams any more
		pa.links[k].Load().close()
	}
	eventually(t, "a sees b inactive", func() bool { return a.ActiveSince(2).IsZero() })
	// b can still dial a, so its streams carry a's messages; a cannot dial b.
	b.serve(listen(t, b.addr))
	eventually(t, "streams both ways", func() bool {
		return a.linked(2) && b.linked(1) && !a.ActiveSince(2).IsZero()
	})
	if pb.links[kindMessage].Load() != old {
		t.Log("b dialed again as well")
	}
	for i, n := range []*node{a, b} {
		o := []*node{b, a}[i]
		ms := travelling(n.cfg.ID, o.cfg.ID)
		n.Send(ms)
		expect(t, o.host, ms)
	}
}

func TestRemovedPeer(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	connect(t, a, b)
	a.host.mu.Lock()
	a.host.removed[2] = true
	a.host.mu.Unlock()
	a.RemovePeer(2)
	if err := receive(t, "b is told", b.host.selfRemoved); !errors.Is(err, ErrRemoved) {
		t.Errorf("%v", err)
	}
	// What it still sends is refused, and not with a 403, which would stop it.
	eventually(t, "b has lost its links", func() bool { return !b.linked(1) })
	drain(b.host.selfRemoved)
	b.Send([]*raftpb.Message{{Type: raftpb.MsgVote.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(9))}})
	if id := receive(t, "unreachable", b.host.unreachable); id != 1 {
		t.Errorf("unreachable %d", id)
	}
	if len(a.host.msgs) != 0 {
		t.Error("a message of a removed member was processed")
	}
	if a.table.Load().remotes[2] != nil {
		t.Error("a removed member became a remote")
	}
}

func drain[T any](c chan T) {
	for len(c) > 0 {
		<-c
	}
}

// handshake sends a raw request with the given headers and returns the answer.
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

// The requests that we dial, as another member sees them.
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

// What the dialer makes of the answers.
func TestStreamAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		version string
		code    int
		removed bool
	}{
		{"3.5.33", 410, true},
		{"", 410, false}, // without a version the answer is not a member's
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
			if strings.HasPrefix(r.URL.Path, pathStream) {
				tried <- struct{}{}
			}
		})}
		l := listen(t, "127.0.0.1:0")
		done := make(chan struct{})
		go func() { defer close(done); srv.Serve(l) }()
		n.AddPeer(2, []string{"http://" + l.Addr().String()})
		for range 5 { // two streams, so at least one tries for the third time
			receive(t, "dial", tried)
		}
		if got := len(n.host.selfRemoved) > 0; got != c.removed {
			t.Errorf("%+v: removed %v", c, got)
		}
		srv.Close()
		<-done
	}
}

func TestURLRotation(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	dead := listen(t, "127.0.0.1:0")
	deadURL := "http://" + dead.Addr().String()
	dead.Close()
	a.AddPeer(2, []string{deadURL, "not a url", b.url()})
	b.AddPeer(1, []string{a.url()})
	eventually(t, "streams over the second URL", func() bool { return b.linked(1) })
	a.UpdatePeer(2, []string{deadURL})
	a.UpdatePeer(2, []string{b.url()})
	ms := travelling(2, 1)
	b.Send(ms)
	expect(t, a.host, ms)
}

// Without streams, messages go by POST, to peers and to remotes.
func TestPipeline(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	a.AddRemote(2, []string{b.url()})
	ms := travelling(1, 2)
	a.Send(ms)
	expect(t, b.host, ms)
	// b has learned how to answer.
	back := travelling(2, 1)
	b.Send(back)
	expect(t, a.host, back)
	if a.ActivePeers() != 0 || !a.ActiveSince(2).IsZero() {
		t.Error("a remote counts as a peer")
	}
	b.host.mu.Lock()
	b.host.refuse = errors.New("not now")
	b.host.mu.Unlock()
	a.Send(ms[:1])
	if id := receive(t, "unreachable", a.host.unreachable); id != 2 {
		t.Errorf("unreachable %d", id)
	}
	// A snapshot message that has no database is not for this way.
	a.Send([]*raftpb.Message{snapMessage(1, 2, 3)})
	if r := receive(t, "snapshot report", a.host.snapshots); r != (snapshotReport{2, false}) {
		t.Errorf("%+v", r)
	}
}

// Somebody opens streams and does not read: Send does not block, memory is
// bounded, the Host is told, and Stop is not held up.
func TestStuckPeer(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	n.AddPeer(2, []string{"http://127.0.0.1:1"})
	for _, kind := range []string{streamMsgApp, streamMessage} {
		c, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET /raft/stream/%s/2 HTTP/1.1\r\nHost: x\r\n%s: 2\r\n%s: 3.7.0\r\n%s: 3.0.0\r\n%s: abc\r\n%s: 1\r\n\r\n",
			kind, headerFrom, headerVersion, headerMinVersion, headerCluster, headerTo)
	}
	eventually(t, "both streams", func() bool { return n.linked(2) })
	data := strings.Repeat("x", 4096)
	start := time.Now()
	for i := range uint64(4 * streamQueue) {
		n.Send([]*raftpb.Message{msgApp(1, 1, i, 0, entry(1, i+1, data)),
			{Type: raftpb.MsgHeartbeatResp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Context: make([]byte, 4096)}})
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("sending took %v", d)
	}
	if id := receive(t, "unreachable", n.host.unreachable); id != 2 {
		t.Errorf("unreachable %d", id)
	}
	for k := range n.table.Load().peers[2].links {
		l := n.table.Load().peers[2].links[k].Load()
		if l == nil {
			continue
		}
		l.q.mu.Lock()
		if waiting := len(l.q.msgs) + l.q.taken; waiting > streamQueue {
			t.Errorf("%d messages wait", waiting)
		}
		l.q.mu.Unlock()
	}
	start = time.Now()
	n.Stop()
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("stop took %v", d)
	}
}

func TestPipelineBound(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	l := listen(t, "127.0.0.1:0") // accepts in the backlog and never answers
	defer l.Close()
	n.AddRemote(2, []string{"http://" + l.Addr().String()})
	for range 3 * pipelineQueue {
		n.Send([]*raftpb.Message{{Type: raftpb.MsgVote.Enum(), From: new(uint64(1)), To: new(uint64(2))}})
	}
	receive(t, "unreachable", n.host.unreachable)
	pl := &n.table.Load().remotes[2].pipeline
	pl.mu.Lock()
	if len(pl.msgs) > pipelineQueue || pl.workers > pipelineWorkers {
		t.Errorf("%d messages, %d workers", len(pl.msgs), pl.workers)
	}
	pl.mu.Unlock()
}

func TestRemotesAreBounded(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	for id := range uint64(3 * maxRemotes) {
		n.AddRemote(id, []string{"bad"})
	}
	if got := len(n.table.Load().remotes); got != maxRemotes {
		t.Errorf("%d remotes", got)
	}
}

// A second stream of the same kind replaces the first, which ends properly.
func TestReplacedStream(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	n.AddPeer(2, []string{"http://127.0.0.1:1"})
	ctx, cancel := context.WithTimeout(context.Background(), 9*time.Second)
	defer cancel()
	open := func() *http.Response {
		req, _ := http.NewRequestWithContext(ctx, "GET", n.url()+"/raft/stream/message/2", nil)
		for k, v := range map[string]string{headerVersion: "3.7.0", headerMinVersion: "3.0.0", headerCluster: "abc", headerTo: "1"} {
			req.Header.Set(k, v)
		}
		resp, err := (&http.Transport{}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	first := open()
	defer first.Body.Close()
	second := open()
	defer second.Body.Close()
	b, err := io.ReadAll(first.Body)
	if err != nil || !bytes.Equal(b, (plainEncoder{}).heartbeat(nil)) {
		t.Errorf("first stream: %x %v", b, err)
	}
	eventually(t, "second stream attached", func() bool { return n.table.Load().peers[2].links[kindMessage].Load() != nil })
	m := &raftpb.Message{Type: raftpb.MsgVote.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(4))}
	n.Send([]*raftpb.Message{m})
	dec := plainDecoder{bufio.NewReader(second.Body)}
	for {
		got, _, err := dec.next()
		if err != nil {
			t.Fatal(err)
		}
		if got == nil {
			continue
		}
		if !proto.Equal(got, m) {
			t.Errorf("%v", got)
		}
		return
	}
}

// Both streams carry a heartbeat at once and then within the reader's patience.
func TestHeartbeatPeriod(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	n.AddPeer(2, []string{"http://127.0.0.1:1"})
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(readTimeout))
	fmt.Fprintf(c, "GET /raft/stream/msgapp/2 HTTP/1.1\r\nHost: x\r\n%s: 3.7.0\r\n%s: 3.0.0\r\n%s: abc\r\n%s: 1\r\n\r\n",
		headerVersion, headerMinVersion, headerCluster, headerTo)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2)
	if _, err := io.ReadFull(resp.Body, b); err != nil || !bytes.Equal(b, []byte{0, 0}) {
		t.Errorf("%x %v", b, err)
	}
}

// A stream on which nothing comes is given up and dialed again.
func TestSilentStream(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	dials := make(chan time.Time, 16)
	stop := make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/raft/stream/message") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set(headerVersion, "3.7.0")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		dials <- time.Now()
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	})}
	l := listen(t, "127.0.0.1:0")
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	defer func() { close(stop); srv.Close(); <-done }()
	n.AddPeer(2, []string{"http://" + l.Addr().String()})
	first := receive(t, "dial", dials)
	again := receive(t, "second dial", dials)
	if d := again.Sub(first); d < readTimeout-time.Second || d > readTimeout+3*time.Second {
		t.Errorf("dialed again after %v", d)
	}
}

// zeros yields n zero bytes, then err.
type zeros struct {
	n   int
	err error
}

func (z *zeros) Read(b []byte) (int, error) {
	if z.n == 0 {
		return 0, z.err
	}
	b = b[:min(len(b), z.n)]
	clear(b)
	z.n -= len(b)
	return len(b), nil
}

func (z *zeros) Close() error { return nil }

func TestSnapshot(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	connect(t, a, b)
	m := snapMessage(1, 2, 42)
	const size = 20 << 20
	a.SendSnapshot(m, &zeros{size, io.EOF})
	if err := receive(t, "body", b.host.snapErrs); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, "message", b.host.snapMsgs); !proto.Equal(got, m) {
		t.Errorf("%v", got)
	}
	if got := len(receive(t, "database", b.host.snapData)); got != size {
		t.Errorf("%d bytes", got)
	}
	if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{2, true}) {
		t.Errorf("%+v", r)
	}

	// The source fails on the way: the receiver must not take it for the end.
	a.SendSnapshot(m, &zeros{size / 2, errors.New("disk gone")})
	if err := receive(t, "body", b.host.snapErrs); err == nil {
		t.Error("a cut database was read to its end")
	}
	if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{2, false}) {
		t.Errorf("%+v", r)
	}

	// The receiver fails after the database.
	b.host.mu.Lock()
	b.host.refuse = fmt.Errorf("%w: too old", ErrSnapshotNotProcessed)
	b.host.mu.Unlock()
	a.SendSnapshot(m, &zeros{10, io.EOF})
	if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{2, false}) {
		t.Errorf("%+v", r)
	}
	// Nobody of that name.
	a.SendSnapshot(snapMessage(1, 77, 1), &zeros{10, io.EOF})
	if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{77, false}) {
		t.Errorf("%+v", r)
	}
	// The transport stops in the middle.
	if err := receive(t, "body", b.host.snapErrs); err != nil { // that of the refused one
		t.Error(err)
	}
	drain(b.host.snapBegun)
	a.SendSnapshot(m, &zeros{1 << 60, io.EOF})
	receive(t, "begin", b.host.snapBegun)
	a.Stop()
	if err := receive(t, "body", b.host.snapErrs); err == nil {
		t.Error("a transfer cut by stop was read to its end")
	}
}

// Nothing that anybody writes to the port harms the member.
func TestRandomBytes(t *testing.T) {
	t.Parallel()
	n, o := startNode(t, 1), startNode(t, 2)
	connect(t, n, o)
	r := rand.New(rand.NewPCG(7, 8))
	head := fmt.Sprintf("Host: x\r\n%s: 2\r\n%s: 3.7.0\r\n%s: 3.0.0\r\n%s: abc\r\n%s: 1\r\n", headerFrom, headerVersion, headerMinVersion, headerCluster, headerTo)
	for i := range 60 {
		junk := make([]byte, r.IntN(5000))
		for j := range junk {
			junk[j] = byte(r.Uint32())
		}
		c, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 4 {
		case 1:
			fmt.Fprintf(c, "POST /raft HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", head, len(junk))
		case 2:
			fmt.Fprintf(c, "POST /raft/snapshot HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", head, len(junk))
		case 3:
			fmt.Fprintf(c, "GET /raft/stream/%s/%x HTTP/1.1\r\n%s\r\n", junk[:min(9, len(junk))], i, head)
		}
		c.Write(junk)
		c.Close()
	}
	ms := travelling(2, 1)
	o.Send(ms)
	expect(t, n.host, ms)
}

// A peer that sends rubbish on a stream loses the stream, nothing else.
func TestRubbishOnStream(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	r := rand.New(rand.NewPCG(9, 10))
	var mu sync.Mutex
	dials := make(chan struct{}, 1024)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		junk := make([]byte, 200)
		for j := range junk {
			junk[j] = byte(r.Uint32())
		}
		mu.Unlock()
		w.Header().Set(headerVersion, "3.7.0")
		w.Write(junk)
		dials <- struct{}{}
	})}
	l := listen(t, "127.0.0.1:0")
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	n.AddPeer(2, []string{"http://" + l.Addr().String()})
	for range 12 {
		receive(t, "dial", dials)
	}
	if len(n.host.msgs) > 0 {
		t.Errorf("rubbish was taken for %v", <-n.host.msgs)
	}
}

func TestStopIsFinal(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	connect(t, a, b)
	a.Stop()
	a.Stop()
	a.AddPeer(3, []string{b.url()})
	a.AddRemote(4, []string{b.url()})
	a.RemoveAllPeers()
	a.Send(travelling(1, 2))
	a.SendSnapshot(snapMessage(1, 2, 1), &zeros{1, io.EOF})
	if a.ActivePeers() != 0 {
		t.Error("a stopped transport has active peers")
	}
	eventually(t, "b sees a gone", func() bool { return !b.linked(1) })
}

func TestRemoveAndAddAgain(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	connect(t, a, b)
	for range 3 {
		a.RemoveAllPeers()
		a.Send(travelling(1, 2)) // to nobody
		a.AddPeer(2, []string{b.url()})
		eventually(t, "streams", func() bool { return a.linked(2) && b.linked(1) })
	}
	drain(b.host.msgs)
	ms := travelling(1, 2)
	a.Send(ms)
	expect(t, b.host, ms)
}

func TestNewChecksItsConfig(t *testing.T) {
	if _, err := New(Config{Version: "x", Host: newHost()}); err == nil {
		t.Error("a version that does not parse")
	}
	if _, err := New(Config{Version: "3.7.3"}); err == nil {
		t.Error("no host")
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	a.AddPeer(2, []string{b.url()})
	p := a.table.Load().peers[2]
	for _, c := range []*http.Client{a.streams, a.requests} {
		rtt, diff, err := p.probeOnce(c)
		if err != nil || rtt <= 0 || diff.Abs() > time.Second {
			t.Errorf("rtt %v, difference %v, %v", rtt, diff, err)
		}
	}
	p.setURLs([]string{"http://127.0.0.1:1"})
	if _, _, err := p.probeOnce(a.requests); err == nil {
		t.Error("nobody there, and the probe is content")
	}
}

func TestSameURLs(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // names are tried once
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"http://a:1 http://b:1", "http://b:1 http://a:1", true},
		{"http://127.0.0.1:1", "http://127.0.0.1:1", true},
		{"http://[::1]:1", "http://[0:0:0:0:0:0:0:1]:1", true},
		{"http://127.0.0.1:1", "http://127.0.0.1:2", false},
		{"http://127.0.0.1:1", "https://127.0.0.1:1", false},
		{"http://localhost:1", "http://127.0.0.1:1", false},
		{"http://127.0.0.1:1", "http://127.0.0.1:1 http://127.0.0.1:2", false},
		{"http://no-such-host.invalid:1", "http://127.0.0.1:1", false},
		{"http://%zz", "http://127.0.0.1:1", false},
	} {
		got, err := SameURLs(ctx, discard, strings.Fields(c.a), strings.Fields(c.b))
		if got != c.want || (err == nil) != c.want {
			t.Errorf("%s and %s: %v %v", c.a, c.b, got, err)
		}
	}
}
