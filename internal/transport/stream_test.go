package transport

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"quorate/internal/transport/peerapi"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A second stream of the same kind replaces the first, which is ended
// properly.
func TestReplacedStream(t *testing.T) {
	t.Parallel()
	n := startNode(t, 1)
	n.AddPeer(2, []string{"http://127.0.0.1:1"})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
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
	eventually(t, "second stream attached", func() bool { return n.table.Load().peers[2].links[peerapi.StreamMessage].Load() != nil })
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

// Both streams carry a heartbeat at once and then within the reader's timeout.
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

// A silent stream is closed and dialed again.
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
