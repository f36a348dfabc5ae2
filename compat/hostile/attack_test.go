package hostile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"quorate/compat/child"
)

// Ports receive random bytes, alone and after a valid beginning of a connection.
func TestRandomBytes(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	r := rand.New(rand.NewPCG(1, 2))
	for name, addr := range map[string]string{"client": v.ClientAddr(), "peer": v.PeerURL()[len("http://"):], "metrics": v.metrics} {
		t.Run(name, func(t *testing.T) {
			before := v.lines(t)
			for i := range 300 {
				junk := make([]byte, r.IntN(4096))
				for j := range junk {
					junk[j] = byte(r.Uint32())
				}
				switch i % 6 {
				case 1:
					junk = append([]byte(http2.ClientPreface), junk...)
				case 2:
					junk = append([]byte("GET /version HTTP/1.1\r\nHost: x\r\n"), junk...)
				case 3:
					junk = append([]byte("POST /raft HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nX-Server-Version: 3.7.3\r\nX-Min-Cluster-Version: 3.0.0\r\n\r\n"), junk...)
				case 4:
					junk = append([]byte("POST /raft/snapshot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nX-Server-Version: 3.7.3\r\n\r\nfff\r\n"), junk...)
				case 5:
					junk = append([]byte{0x16, 3, 1}, junk...) // the beginning of a TLS hello
				}
				send(t, addr, junk)
			}
			v.survives(t, before, 400)
		})
	}
}

// send writes as much as the other side accepts, half-closes, and reads until the peer closes or is silent.
func send(t *testing.T, addr string, b []byte) {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(b); err != nil {
		return // it may close early
	}
	c.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, io.LimitReader(c, 1<<20))
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// h2 is an HTTP/2 connection that obeys no rules.
type h2 struct {
	net.Conn
	*http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
	w     *bytes.Buffer // frames wait here until flush
}

func newH2(t *testing.T, addr string) *h2 {
	t.Helper()
	c := &h2{Conn: dial(t, addr), w: &bytes.Buffer{}}
	t.Cleanup(func() { c.Conn.Close() })
	c.Framer = http2.NewFramer(c.w, nil)
	c.AllowIllegalWrites = true
	c.enc = hpack.NewEncoder(&c.block)
	c.w.WriteString(http2.ClientPreface)
	c.WriteSettings()
	go io.Copy(io.Discard, c.Conn) // whatever it says
	return c
}

// flush sends what was written; it returns false when the peer has closed.
func (c *h2) flush() bool {
	c.SetWriteDeadline(time.Now().Add(limit / 2))
	_, err := c.Conn.Write(c.w.Bytes())
	c.w.Reset()
	return err == nil
}

func (c *h2) headers(more ...hpack.HeaderField) []byte {
	c.block.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/etcdserverpb.KV/Put"},
		{Name: ":authority", Value: "x"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}, more...) {
		c.enc.WriteField(f)
	}
	return c.block.Bytes()
}

// Frames that the protocol forbids, or allows but that no client sends in such numbers.
func TestFrames(t *testing.T) {
	t.Parallel()
	v := startVictim(t, true, nil) // some of the floods are writes
	floods := []struct {
		name  string
		count int
		frame func(c *h2, i int)
	}{
		{"settings", 50_000, func(c *h2, _ int) { c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}) }},
		{"pings", 50_000, func(c *h2, i int) { c.WritePing(false, [8]byte{byte(i)}) }},
		{"resets of streams that are not there", 50_000, func(c *h2, i int) { c.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel) }},
		{"window updates of nothing", 50_000, func(c *h2, _ int) { c.WriteWindowUpdate(0, 1) }},
		{"windows that overflow", 1000, func(c *h2, _ int) { c.WriteWindowUpdate(0, 1<<31-1) }},
		{"data for no stream", 1000, func(c *h2, _ int) { c.WriteData(0, false, []byte("x")) }},
		{"data for an unknown stream", 5000, func(c *h2, i int) { c.WriteData(uint32(2*i+1), false, make([]byte, 1000)) }},
		{"priorities", 50_000, func(c *h2, i int) { c.WritePriority(uint32(2*i+1), http2.PriorityParam{Weight: 1}) }},
		{"frames of no known type", 20_000, func(c *h2, i int) { c.WriteRawFrame(http2.FrameType(100+i%100), 0xff, 1, make([]byte, 100)) }},
		{"a frame longer than allowed", 1, func(c *h2, _ int) { c.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20)) }},
		{"header blocks that are none", 2000, func(c *h2, i int) {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}},
		{"a block without end", 5000, func(c *h2, i int) {
			if i == 0 {
				c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.headers()})
				return
			}
			c.WriteContinuation(1, false, c.headers(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 8000)}))
		}},
		{"giant headers", 200, func(c *h2, i int) {
			b := bytes.Clone(c.headers(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 1<<20)}))
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: b[:16000]})
			for b = b[16000:]; len(b) > 16000; b = b[16000:] {
				c.WriteContinuation(uint32(2*i+1), false, b[:16000])
			}
			c.WriteContinuation(uint32(2*i+1), true, b)
		}},
		{"streams that are reset at once", 100_000, func(c *h2, i int) {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: c.headers(), EndHeaders: true})
			c.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
		}},
		{"requests that are reset when they are complete", 50_000, func(c *h2, i int) {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: c.headers(), EndHeaders: true})
			c.WriteData(uint32(2*i+1), true, message((&protoPut{"attack", "x"}).bytes()))
			c.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
		}},
		{"streams that are opened and left", 20_000, func(c *h2, i int) {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: c.headers(), EndHeaders: true})
		}},
		{"messages that are no messages", 5000, func(c *h2, i int) {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: c.headers(), EndHeaders: true})
			c.WriteData(uint32(2*i+1), true, message([]byte{0xff, 0xff, 0xff, 0xff}))
		}},
		{"messages that claim to be huge", 2000, func(c *h2, i int) {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: c.headers(), EndHeaders: true})
			c.WriteData(uint32(2*i+1), false, []byte{0, 0xff, 0xff, 0xff, 0xff, 1})
		}},
		{"messages that claim to be compressed", 2000, func(c *h2, i int) {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: c.headers(hpack.HeaderField{Name: "grpc-encoding", Value: "gzip"}), EndHeaders: true})
			c.WriteData(uint32(2*i+1), true, append([]byte{1}, message([]byte("no gzip"))[1:]...))
		}},
	}
	for _, f := range floods {
		t.Run(f.name, func(t *testing.T) {
			before := v.lines(t)
			var all sync.WaitGroup
			for range 2 {
				c := newH2(t, v.ClientAddr())
				all.Go(func() {
					for i := range f.count {
						f.frame(c, i)
						if c.w.Len() > 64<<10 && !c.flush() {
							return // the connection was closed: a good answer
						}
					}
					c.flush()
				})
			}
			all.Wait()
			v.survives(t, before, 700)
		})
	}
}

// message frames a gRPC message: a flag, a length, the message.
func message(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

type protoPut struct{ key, value string }

func (p *protoPut) bytes() []byte {
	b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), p.key)
	return protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), p.value)
}

// Connections that send a little and then nothing block no one, and are eventually closed.
func TestSlowConnections(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	before := v.lines(t)
	starts := []string{"", "P", "GET / HT", "GET /version HTTP/1.1\r\nHost: x\r\nX-A: ", "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", "\x16\x03\x01"}
	var conns []net.Conn
	for i := range 600 {
		addr := []string{v.ClientAddr(), v.PeerURL()[len("http://"):], v.metrics}[i%3]
		c := dial(t, addr)
		defer c.Close()
		if _, err := io.WriteString(c, starts[(i/3)%len(starts)]); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	v.survives(t, before, 400)
	// The server closes those that never completed a header.
	closed := 0
	for i, c := range conns {
		if n := (i / 3) % len(starts); n == 4 {
			continue // a body may be slow
		}
		c.SetReadDeadline(time.Now().Add(limit))
		_, err := io.Copy(io.Discard, c)
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			t.Fatalf("a connection to %s that sent %q and no more is still open", c.RemoteAddr(), starts[(i/3)%len(starts)])
		}
		closed++
	}
	t.Logf("%d of %d connections were closed", closed, len(conns))
	v.survives(t, before, 400)
}

// Transactions that are too large, too many or too deep get an error and have no other effect.
func TestTransactions(t *testing.T) {
	t.Parallel()
	v := startVictim(t, true, nil) // it is a flood of writes
	put := func(k string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k)}}}
	}
	many := func(n int) *pb.TxnRequest {
		r := &pb.TxnRequest{}
		for i := range n {
			r.Success = append(r.Success, put(fmt.Sprint("k", i)))
		}
		return r
	}
	deep := func(n int) *pb.TxnRequest {
		r := &pb.TxnRequest{Success: []*pb.RequestOp{put("k")}}
		for range n {
			r = &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}}}
		}
		return r
	}
	for _, tc := range []struct {
		name string
		r    *pb.TxnRequest
		code codes.Code
		text string
	}{
		{"many operations", many(10_000), codes.InvalidArgument, "etcdserver: too many operations in txn request"},
		{"too many for a message", many(200_000), codes.ResourceExhausted, "received message larger than max"},
		{"a hundred deep", deep(100), codes.InvalidArgument, ""},
		{"deep", deep(3000), codes.InvalidArgument, ""},
		{"a great value", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 1600<<10)}}}}},
			codes.InvalidArgument, "etcdserver: request is too large"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := v.lines(t)
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for range 5 {
						ctx, cancel := context.WithTimeout(context.Background(), limit)
						_, err := v.good.Txn(ctx, tc.r)
						cancel()
						if got := status.Code(err); err != nil && got != tc.code || err == nil && tc.text != "" || err != nil && !strings.Contains(err.Error(), tc.text) {
							t.Errorf("%v, want %v %q", err, tc.code, tc.text)
						}
					}
				})
			}
			all.Wait()
			v.survives(t, before, 700)
		})
	}
	// Nesting that no encoder produces, by hand: each level is about four bytes.
	t.Run("as deep as a message can be", func(t *testing.T) {
		before := v.lines(t)
		c := newH2(t, v.ClientAddr())
		body := []byte{}
		for len(body) < 1<<20 {
			// A TxnRequest with a success list of one RequestOp with a TxnRequest ... written from the inside out.
			body = append(binary.AppendUvarint([]byte{4<<3 | 2}, uint64(len(body))), body...)
			body = append(binary.AppendUvarint([]byte{2<<3 | 2}, uint64(len(body))), body...)
			if len(body) > 60<<10 {
				break // writing it is quadratic; 10,000 levels are enough
			}
		}
		body = message(body)
		c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bytes.ReplaceAll(c.headers(), []byte("x"), []byte("x")), EndHeaders: true})
		for ; len(body) > 16000; body = body[16000:] {
			c.WriteData(1, false, body[:16000])
		}
		c.WriteData(1, true, body)
		c.flush()
		v.survives(t, before, 700)
	})
}

// A client that creates watches without limit is refused at a bound; other clients can still watch.
func TestWatchesWithoutEnd(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	before := v.lines(t)
	conn, err := grpc.NewClient("passthrough:///"+v.ClientAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	// Watches of keys of a megabyte each reach the bound of one stream soon.
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := range 300 {
			key := bytes.Repeat([]byte{byte(i)}, 1<<20)
			if s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: key}}}) != nil {
				return
			}
		}
	}()
	created, refused := 0, 0
	for range 300 {
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case r.Canceled && r.CancelReason == "etcdserver: too many requests":
			refused++
		case r.Created && !r.Canceled:
			created++
		default:
			t.Fatalf("%v", r)
		}
	}
	if created == 0 || refused == 0 || created > 200 {
		t.Errorf("%d watches created, %d refused", created, refused)
	}
	// Another stream is served, and receives a change.
	other, err := v.good.Watcher.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("seen")}}}); err != nil {
		t.Fatal(err)
	}
	if r, err := other.Recv(); err != nil || r.Canceled {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := v.good.PutWithin(limit, "seen", "x"); err != nil {
		t.Fatal(err)
	}
	if r, err := other.Recv(); err != nil || len(r.Events) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	v.survives(t, before, 600)
}

// A watcher that never reads costs a bounded amount of memory and affects no other client.
func TestWatcherThatDoesNotRead(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	before := v.lines(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	bad := child.Dial(t, v.ClientAddr())
	var streams []pb.Watch_WatchClient
	for range 20 {
		s, err := bad.Watcher.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("big/"), RangeEnd: []byte("big0"), PrevKv: true}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	value := strings.Repeat("v", 512<<10)
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 75 { // 150 MB of events
				if _, err := v.good.PutWithin(limit, fmt.Sprintf("big/%d", (4*i+w)%40), value); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	v.survives(t, before, 1200)
	// And when it finally reads, nothing is missing.
	s, last, n := streams[0], int64(0), 0
	for n < 300 {
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range r.Events {
			if ev.Kv.ModRevision <= last {
				t.Fatalf("revision %d after %d", ev.Kv.ModRevision, last)
			}
			last = ev.Kv.ModRevision
			n++
		}
	}
}
