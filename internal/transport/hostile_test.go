package transport

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// Nothing that a client writes to the port harms the member.
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

// A peer that sends garbage on a stream loses the stream, nothing else.
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
	a.RemovePeer(2)
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
		a.RemovePeer(2)
		a.Send(travelling(1, 2)) // to no member
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
		{"http://[fd00::2]:1", "http://[FD00::0002]:01", true},
		{"http://no-such-host.invalid:1", "http://NO-such-host.invalid:1", true},
		{"http://127.0.0.1:1", "http://127.0.0.1:2", false},
		{"http://127.0.0.1:1", "https://127.0.0.1:1", false},
		{"http://localhost:1", "http://127.0.0.1:1", false},
		{"http://127.0.0.1:1", "http://127.0.0.1:1 http://127.0.0.1:2", false},
		{"http://no-such-host.invalid:1", "http://127.0.0.1:1", false},
		{"http://%zz", "http://127.0.0.1:1", false},
	} {
		got, err := SameURLs(ctx, zap.NewNop(), strings.Fields(c.a), strings.Fields(c.b))
		if got != c.want || (err == nil) != c.want {
			t.Errorf("%s and %s: %v %v", c.a, c.b, got, err)
		}
	}
}
