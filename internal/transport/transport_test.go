package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"quorate/internal/ids"
	"quorate/internal/transport/peerapi"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host records the calls that reach it.
type host struct {
	msgs        chan *raftpb.Message
	unreachable chan uint64
	snapshots   chan snapshotReport
	selfRemoved chan error

	returned chan *raftpb.Message

	mu      sync.Mutex
	removed map[ids.Member]bool
	refuse  error // result of Process

	snapBegun chan struct{}
	snapMsgs  chan *raftpb.Message
	snapData  chan []byte
	snapErrs  chan error
}

func newHost() *host {
	return &host{msgs: make(chan *raftpb.Message, 1<<16), unreachable: make(chan uint64, 1<<10), snapshots: make(chan snapshotReport, 16),
		selfRemoved: make(chan error, 1<<10), returned: make(chan *raftpb.Message, 1<<14), removed: map[ids.Member]bool{},
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
func (h *host) Step(bool) {}
func (h *host) ReportUnreachable(id ids.Member) {
	select {
	case h.unreachable <- uint64(id):
	default:
	}
}
func (h *host) Returned(m *raftpb.Message)            { h.returned <- m }
func (h *host) ReportSnapshot(id ids.Member, ok bool) { h.snapshots <- snapshotReport{id, ok} }
func (h *host) IsRemoved(id ids.Member) bool {
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

// node is a member on the loopback interface.
type node struct {
	*Transport
	host *host
	addr string
	tls  bool
	srv  *http.Server
	done chan struct{}
}

const testCluster = 0xabc

func startNode(t *testing.T, id ids.Member, tune ...func(*Config)) *node {
	n := &node{host: newHost()}
	l := listen(t, "127.0.0.1:0")
	n.addr = l.Addr().String()
	var err error
	cfg := Config{ID: id, ClusterID: testCluster, PeerURLs: []string{n.url()}, Host: n.host, Version: "3.7.3"}
	for _, f := range tune {
		f(&cfg)
	}
	n.Transport, err = New(cfg)
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
	n.srv = HTTPServer(peerapi.RaftHandler(n), nil)
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
				eventually(t, fmt.Sprintf("streams from %s to %s", a.cfg.ID, b.cfg.ID), func() bool { return a.linked(b.cfg.ID) })
			}
		}
	}
}

func (n *node) linked(id ids.Member) bool {
	p := n.table.Load().peers[id]
	return p != nil && p.links[peerapi.StreamMsgApp].Load() != nil && p.links[peerapi.StreamMessage].Load() != nil
}

// patience bounds every wait for an expected event.
const patience = 30 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing within %v", what, patience)
		panic("unreachable")
	}
}

// travelling returns one valid message of every type that is sent on
// streams.
func travelling(from, to ids.Member) []*raftpb.Message {
	var ms []*raftpb.Message
	for _, typ := range []raftpb.MessageType{raftpb.MsgProp, raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp,
		raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgTransferLeader, raftpb.MsgTimeoutNow, raftpb.MsgReadIndex,
		raftpb.MsgReadIndexResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp} {
		m := &raftpb.Message{Type: typ.Enum(), From: (*uint64)(&from), To: (*uint64)(&to), Term: new(uint64(5)), LogTerm: new(uint64(4)),
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
		i := slices.IndexFunc(left, func(w *raftpb.Message) bool {
			return proto.Equal(m, w) || proto.Equal(m, posted([]*raftpb.Message{w})[0])
		})
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
			t.Errorf("node %s: %d active peers", n.cfg.ID, n.ActivePeers())
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
	// A window of messages in flight, like raft's.
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
	old := pb.links[peerapi.StreamMessage].Load()
	pa := b.table.Load().peers[1]
	for k := range pa.links { // the server no longer owns the streams
		pa.links[k].Load().close()
	}
	eventually(t, "a sees b inactive", func() bool { return a.ActiveSince(2).IsZero() })
	// b can still dial a, so its streams carry a's messages; a cannot dial b.
	b.serve(listen(t, b.addr))
	eventually(t, "streams both ways", func() bool {
		return a.linked(2) && b.linked(1) && !a.ActiveSince(2).IsZero()
	})
	if pb.links[peerapi.StreamMessage].Load() != old {
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
	if err := receive(t, "b is told", b.host.selfRemoved); !errors.Is(err, peerapi.ErrRemoved) {
		t.Errorf("%v", err)
	}
	// Its further messages are rejected, but not with a 403, which would stop
	// it.
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
