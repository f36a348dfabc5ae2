package transport

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

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

// posted returns messages as they arrive by POST: a heartbeat carries no commit
// index there, as anyone may have sent it.
func posted(ms []*raftpb.Message) []*raftpb.Message {
	out := slices.Clone(ms)
	for i, m := range out {
		if m.GetType() == raftpb.MsgHeartbeat {
			out[i] = proto.Clone(m).(*raftpb.Message)
			out[i].Commit = nil
		}
	}
	return out
}

// Without streams, messages are sent by POST, to peers and to remotes.
func TestPipeline(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	a.AddRemote(2, []string{b.url()})
	ms := travelling(1, 2)
	a.Send(ms)
	expect(t, b.host, posted(ms))
	// b has learned the sender's URLs.
	back := travelling(2, 1)
	b.Send(back)
	expect(t, a.host, posted(back))
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
	// A snapshot message without a database is not accepted by POST /raft.
	a.Send([]*raftpb.Message{snapMessage(1, 2, 3)})
	if r := receive(t, "snapshot report", a.host.snapshots); r != (snapshotReport{2, false}) {
		t.Errorf("%+v", r)
	}
}

// A peer opens streams and does not read: Send does not block, memory is
// bounded, the Host is notified, and Stop is not delayed.
func TestStuckPeer(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1, func(cfg *Config) { cfg.WriteTimeout = time.Hour }) // only closing unblocks a write
	n.AddPeer(2, []string{"http://127.0.0.1:1"})
	for _, kind := range []string{"msgapp", "message"} {
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
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range uint64(4 * streamQueue) {
			n.Send([]*raftpb.Message{msgApp(1, 1, i, 0, entry(1, i+1, data)),
				{Type: raftpb.MsgHeartbeatResp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Context: make([]byte, 4096)}})
		}
	}()
	receive(t, "the end of sending", sent)
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
	stopped := make(chan struct{})
	go func() { defer close(stopped); n.Stop() }()
	receive(t, "the end of a stop", stopped)
}

func TestPipelineBound(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	l := listen(t, "127.0.0.1:0") // connections stay in the backlog without a response
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
	for id := range ids.Member(3 * maxRemotes) {
		n.AddRemote(id, []string{"bad"})
	}
	if got := len(n.table.Load().remotes); got != maxRemotes {
		t.Errorf("%d remotes", got)
	}
}
