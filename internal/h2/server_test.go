package h2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// rawCodec passes bytes through unchanged.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = rawCodec{}

// call is what the test handlers use of either server.
type call interface {
	Context() context.Context
	SetHeader(metadata.MD) error
	SendHeader(metadata.MD) error
	setTrailer(metadata.MD)
	recv() ([]byte, error)
	send([]byte) error
}

// testUnary responds as its request asks.
func testUnary(c call, req []byte) ([]byte, error) {
	word, rest, _ := strings.Cut(string(req), " ")
	switch word {
	case "fail":
		return nil, status.Error(codes.FailedPrecondition, rest)
	case "error":
		return nil, errors.New(rest)
	case "meta":
		c.SetHeader(metadata.Pairs("a", "1", "b-bin", "\x00\x01"))
		c.setTrailer(metadata.Pairs("t", "2"))
		md, _ := metadata.FromIncomingContext(c.Context())
		return []byte(fmt.Sprint(md.Get("x"), md.Get("y-bin"), md.Get(":authority"), md.Get("user-agent"), md.Get("content-type"))), nil
	case "wait":
		<-c.Context().Done()
		return nil, c.Context().Err()
	case "deadline":
		_, ok := c.Context().Deadline()
		return []byte(fmt.Sprint(ok)), nil
	case "big":
		var n int
		fmt.Sscan(rest, &n)
		return bytes.Repeat([]byte("x"), n), nil
	case "peer":
		p, ok := peer.FromContext(c.Context())
		return []byte(fmt.Sprint(ok, p.Addr != nil, p.LocalAddr != nil)), nil
	}
	return append([]byte("re: "), req...), nil
}

// testStream echoes messages until it is told to end.
func testStream(c call) error {
	for {
		b, err := c.recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch word, rest, _ := strings.Cut(string(b), " "); word {
		case "end":
			return status.Error(codes.Aborted, rest)
		case "many":
			var n int
			fmt.Sscan(rest, &n)
			for i := range n {
				if err := c.send(fmt.Appendf(nil, "%d", i)); err != nil {
					return err
				}
			}
			continue
		case "header":
			c.SendHeader(metadata.Pairs("early", "1"))
			continue
		}
		if err := c.send(b); err != nil {
			return err
		}
	}
}

type ourCall struct{ *Stream }

func (c ourCall) setTrailer(md metadata.MD) { c.SetTrailer(md) }
func (c ourCall) recv() ([]byte, error)     { return c.Recv() }
func (c ourCall) send(b []byte) error       { return c.Send(mem.BufferSlice{mem.SliceBuffer(b)}, false) }

// unaryOf replies in every form that the server supports.
func unaryOf(s *Stream, req []byte) (Reply, error) {
	b, err := testUnary(ourCall{s}, req)
	if err != nil {
		return Reply{}, err
	}
	switch len(b) % 3 {
	case 0:
		return Reply{Small: inPlace(b), Size: len(b)}, nil
	case 1:
		return Reply{Source: &pieces{left: b}, Size: len(b)}, nil
	}
	return Reply{Pieces: mem.BufferSlice{mem.SliceBuffer(b)}}, nil
}

type inPlace []byte

func (m inPlace) AppendTo(b []byte) []byte { return append(b, m...) }

// pieces is a message in pieces of growing size that share a buffer.
type pieces struct {
	left   []byte
	buf    []byte
	n      int
	before func() error // called before each piece, if set
	closed chan struct{}
}

func (p *pieces) Next() ([]byte, bool, error) {
	if p.before != nil {
		if err := p.before(); err != nil {
			return nil, false, err
		}
	}
	for i := range p.buf {
		p.buf[i] = 0xdb
	}
	p.n = min(3*p.n+1, len(p.left))
	p.buf = append(p.buf[:0], p.left[:p.n]...)
	p.left = p.left[p.n:]
	return p.buf, p.n%2 == 0, nil
}

func (p *pieces) Close() {
	if p.closed != nil {
		close(p.closed)
	}
}

func newTestServer(t *testing.T, o Options) (*Server, string) {
	t.Helper()
	srv := New(o)
	srv.HandleUnary("/test.S/Unary", unaryOf)
	srv.HandleStream("/test.S/Stream", func(s *Stream) error { return testStream(ourCall{s}) })
	srv.HandleStream("/test.S/Idle", func(s *Stream) error {
		<-s.Context().Done()
		return nil
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != ErrServerStopped {
			t.Errorf("Serve returned %v", err)
		}
	})
	return srv, l.Addr().String()
}

func dial(t *testing.T, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30))}, opts...)
	cc, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func unary(ctx context.Context, cc *grpc.ClientConn, req string, opts ...grpc.CallOption) (string, error) {
	in, out := []byte(req), []byte(nil)
	err := cc.Invoke(ctx, "/test.S/Unary", &in, &out, opts...)
	return string(out), err
}

func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestUnary(t *testing.T) {
	_, addr := newTestServer(t, Options{Workers: 2})
	cc := dial(t, addr, grpc.WithUserAgent("tester"))
	ctx := metadata.AppendToOutgoingContext(background(t), "x", "1", "x", "2", "y-bin", "\xff\x00")
	var header, trailer metadata.MD
	for _, tt := range []struct {
		req, want string
		code      codes.Code
		text      string
	}{
		{"hello", "re: hello", codes.OK, ""},
		{"", "re: ", codes.OK, ""},
		{"fail äö 100%\n", "", codes.FailedPrecondition, "äö 100%\n"},
		{"error oops", "", codes.Unknown, "oops"},
		{"meta", "[1 2] [\xff\x00] [" + addr + "] [tester grpc-go/" + grpc.Version + "] [application/grpc+proto]", codes.OK, ""},
		{"deadline", "true", codes.OK, ""},
		{"peer", "true true true", codes.OK, ""},
		{"hello again", "re: hello again", codes.OK, ""},
	} {
		got, err := unary(ctx, cc, tt.req, grpc.Header(&header), grpc.Trailer(&trailer))
		if st := status.Convert(err); got != tt.want || st.Code() != tt.code || st.Message() != tt.text {
			t.Errorf("%q: got %q, %v; want %q, %v %q", tt.req, got, err, tt.want, tt.code, tt.text)
		}
		if tt.req == "meta" && (fmt.Sprint(header["a"], header["b-bin"], trailer["t"]) != "[1] [\x00\x01] [2]") {
			t.Errorf("header %q, trailer %q", header, trailer)
		}
	}
}

func TestSizes(t *testing.T) {
	_, addr := newTestServer(t, Options{MaxMessage: 3 << 20})
	for _, opts := range [][]grpc.DialOption{nil, {grpc.WithInitialWindowSize(1 << 20), grpc.WithInitialConnWindowSize(1 << 22)}} {
		cc := dial(t, addr, opts...)
		ctx := background(t)
		var wg sync.WaitGroup
		for _, n := range []int{1, 1000, frameBytes - prefixLen, frameBytes, streamWindow, streamWindow + 1, 200_000, 2_500_000} {
			for range 3 {
				wg.Go(func() {
					req := strings.Repeat("y", n)
					if got, err := unary(ctx, cc, req); err != nil || got != "re: "+req {
						t.Errorf("request of %d bytes: %d bytes back, %v", n, len(got), err)
					}
					if got, err := unary(ctx, cc, fmt.Sprint("big ", n)); err != nil || len(got) != n {
						t.Errorf("answer of %d bytes: %d, %v", n, len(got), err)
					}
				})
			}
		}
		wg.Wait()
		_, err := unary(ctx, cc, strings.Repeat("z", 3<<20+1))
		if st := status.Convert(err); st.Code() != codes.ResourceExhausted || st.Message() != "grpc: received message larger than max (3145729 vs. 3145728)" {
			t.Errorf("message beyond the limit: %v", err)
		}
	}
}

func TestGzip(t *testing.T) {
	_, addr := newTestServer(t, Options{MaxMessage: 1 << 20})
	cc := dial(t, addr)
	ctx := background(t)
	for _, n := range []int{0, 10, 500_000} {
		req := strings.Repeat("a", n)
		if got, err := unary(ctx, cc, req, grpc.UseCompressor("gzip")); err != nil || got != "re: "+req {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
	}
	_, err := unary(ctx, cc, strings.Repeat("a", 1<<20+1), grpc.UseCompressor("gzip"))
	if st := status.Convert(err); st.Code() != codes.ResourceExhausted || st.Message() != "grpc: received message after decompression larger than max 1048576" {
		t.Errorf("bomb: %v", err)
	}
}

func openStream(t *testing.T, ctx context.Context, cc *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.S/Stream")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStream(t *testing.T) {
	_, addr := newTestServer(t, Options{})
	cc := dial(t, addr)
	s := openStream(t, background(t), cc)
	exchange := func(req, want string) {
		t.Helper()
		b := []byte(req)
		if err := s.SendMsg(&b); err != nil {
			t.Fatal(err)
		}
		var got []byte
		if err := s.RecvMsg(&got); err != nil || string(got) != want {
			t.Fatalf("%q: got %q, %v", req, got, err)
		}
	}
	exchange("one", "one")
	exchange(strings.Repeat("n", 300_000), strings.Repeat("n", 300_000))
	exchange("many 20000", "0")
	for i := 1; i < 20000; i++ {
		var got []byte
		if err := s.RecvMsg(&got); err != nil || string(got) != fmt.Sprint(i) {
			t.Fatalf("message %d: %q, %v", i, got, err)
		}
	}
	// Update the windows last: they are far larger than all messages together.
	for i := range 3000 {
		exchange(fmt.Sprint(i, strings.Repeat("w", 1000)), fmt.Sprint(i, strings.Repeat("w", 1000)))
	}
	b := []byte("end of it")
	s.SendMsg(&b)
	if err := s.RecvMsg(&b); status.Code(err) != codes.Aborted || status.Convert(err).Message() != "of it" {
		t.Fatalf("end: %v", err)
	}
	s = openStream(t, background(t), cc)
	s.CloseSend()
	if err := s.RecvMsg(&b); err != io.EOF {
		t.Fatalf("half close: %v", err)
	}
}

func TestCancel(t *testing.T) {
	srv, addr := newTestServer(t, Options{})
	seen := make(chan error, 1)
	srv.HandleUnary("/test.S/Wait", func(s *Stream, _ []byte) (Reply, error) {
		seen <- nil
		<-s.Context().Done()
		seen <- s.Context().Err()
		return Reply{}, s.Context().Err()
	})
	cc := dial(t, addr)
	ctx, cancel := context.WithCancel(background(t))
	go func() {
		<-seen
		cancel()
	}()
	in, out := []byte{}, []byte{}
	if err := cc.Invoke(ctx, "/test.S/Wait", &in, &out); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	if err := <-seen; err != context.Canceled {
		t.Errorf("the handler saw %v", err)
	}
	ctx, cancel = context.WithTimeout(background(t), 50*time.Millisecond)
	defer cancel()
	if err := cc.Invoke(ctx, "/test.S/Wait", &in, &out); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}
	<-seen
	if err := <-seen; err != context.DeadlineExceeded && err != context.Canceled { // the client may report it first
		t.Errorf("the handler saw %v", err)
	}
}

// A stream served by OnMessage gets each message once, in order, and then the end of messages
// or the error that has ended the call.
func TestOnMessage(t *testing.T) {
	srv, addr := newTestServer(t, Options{})
	ended := make(chan error, 1)
	srv.HandleStream("/test.S/Ready", func(s *Stream) error {
		done := make(chan struct{})
		s.OnMessage(func() bool {
			b, err := s.Recv()
			if err == nil {
				err = s.Send(mem.BufferSlice{mem.SliceBuffer(b)}, false)
			}
			if err != nil {
				ended <- err
				close(done)
			}
			return err == nil
		})
		<-done
		return nil
	})
	open := func(ctx context.Context) grpc.ClientStream {
		s, err := dial(t, addr).NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.S/Ready")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(background(t))
	const messages = 2000
	for i := range messages {
		b := fmt.Append(nil, i)
		if err := s.SendMsg(&b); err != nil {
			t.Fatal(err)
		}
		for from := i - i%7; i%7 == 6 && from <= i; from++ { // some arrive together, some alone
			var got []byte
			if err := s.RecvMsg(&got); err != nil || string(got) != fmt.Sprint(from) {
				t.Fatalf("message %d: got %q, %v", from, got, err)
			}
		}
	}
	s.CloseSend()
	var b []byte
	for range messages % 7 {
		if err := s.RecvMsg(&b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RecvMsg(&b); err != io.EOF {
		t.Fatalf("the end: got %v", err)
	}
	if err := <-ended; err != io.EOF {
		t.Errorf("the handler saw %v", err)
	}
	ctx, cancel := context.WithCancel(background(t))
	s = open(ctx)
	b = []byte("a")
	if err := s.SendMsg(&b); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(&b); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("the handler of a call that is cancelled saw %v", err)
	}
}

// Messages that are answered on the reading goroutine and those left to the handler are
// answered in order, and each once.
func TestAnswerWith(t *testing.T) {
	srv, addr := newTestServer(t, Options{})
	var atOnce atomic.Int64
	srv.HandleStream("/test.S/Answer", func(s *Stream) error {
		s.AnswerWith(20, func(b, req []byte) ([]byte, bool) {
			switch {
			case strings.HasSuffix(string(req), "7"):
				return append(b, "declined"...), false
			case strings.HasSuffix(string(req), "5"):
				return append(b, strings.Repeat("too long", 10)...), true
			}
			atOnce.Add(1)
			return append(append(b, req...), " at once"...), true
		})
		for {
			b, err := s.Recv()
			if err == io.EOF {
				return nil
			}
			if err == nil {
				err = s.Send(mem.BufferSlice{mem.SliceBuffer(append(b, " later"...))}, false)
			}
			if err != nil {
				return err
			}
		}
	})
	exchange := func(messages int, opts ...grpc.CallOption) {
		t.Helper()
		s, err := dial(t, addr).NewStream(background(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.S/Answer", opts...)
		if err != nil {
			t.Fatal(err)
		}
		receive := func(i int) {
			t.Helper()
			var got []byte
			err := s.RecvMsg(&got)
			number, how, _ := strings.Cut(string(got), " ")
			if err != nil || number != fmt.Sprint(i) || (i%10 == 7 || i%10 == 5 || i == 0) && how != "later" || how != "later" && how != "at once" {
				t.Fatalf("message %d: got %q, %v", i, got, err)
			}
		}
		for i := range messages {
			b := fmt.Append(nil, i)
			if err := s.SendMsg(&b); err != nil {
				t.Fatal(err)
			}
			for from := i - i%9; i%9 == 8 && from <= i; from++ { // some arrive together, some alone
				receive(from)
			}
		}
		s.CloseSend()
		for i := messages - messages%9; i < messages; i++ {
			receive(i)
		}
		var b []byte
		if err := s.RecvMsg(&b); err != io.EOF {
			t.Fatalf("the end: got %v", err)
		}
	}
	for try := range 100 {
		exchange(2000)
		if atOnce.Load() > 0 {
			break
		}
		if try == 99 {
			t.Error("no message is answered at once")
		}
	}
	before := atOnce.Load()
	exchange(100, grpc.UseCompressor("gzip"))
	if n := atOnce.Load() - before; n > 0 {
		t.Errorf("%d compressed messages were answered at once, uncompressed", n)
	}
}

// A client that stops reading one stream delays neither the other streams of its connection
// nor, with a large reply on each, a stop.
func TestSlowReader(t *testing.T) {
	srv, addr := newTestServer(t, Options{})
	cc := dial(t, addr, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(1<<20))
	ctx := background(t)
	for range 4 {
		s := openStream(t, ctx, cc)
		b := []byte("many 1000000")
		s.SendMsg(&b)
		if err := s.RecvMsg(&b); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if got, err := unary(ctx, cc, "hello"); err != nil || got != "re: hello" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	srv.Stop()
}

func TestGracefulStop(t *testing.T) {
	srv, addr := newTestServer(t, Options{})
	cc := dial(t, addr)
	s := openStream(t, background(t), cc)
	b := []byte("hello")
	s.SendMsg(&b)
	s.RecvMsg(&b)
	stopped := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(stopped)
	}()
	for !srv.ending() {
		time.Sleep(time.Millisecond)
	}
	b = []byte("still here")
	if err := s.SendMsg(&b); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(&b); err != nil || string(b) != "still here" {
		t.Fatalf("%q, %v", b, err)
	}
	select {
	case <-stopped:
		t.Fatal("the server did not wait for the stream")
	default:
	}
	s.CloseSend()
	if err := s.RecvMsg(&b); err != io.EOF {
		t.Fatal(err)
	}
	<-stopped
	if _, err := unary(background(t), cc, "hello"); status.Code(err) != codes.Unavailable {
		t.Fatalf("after the stop: %v", err)
	}
}

func TestMany(t *testing.T) {
	_, addr := newTestServer(t, Options{Workers: 8})
	var wg sync.WaitGroup
	for c := range 4 {
		cc := dial(t, addr)
		for g := range 25 {
			wg.Go(func() {
				for i := range 200 {
					req := fmt.Sprint(c, g, i)
					if got, err := unary(context.Background(), cc, req); err != nil || got != "re: "+req {
						t.Errorf("%q: %q, %v", req, got, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestContext(t *testing.T) {
	c := &callContext{values: context.Background()}
	child, cancel := context.WithCancelCause(c)
	defer cancel(nil)
	ran := make(chan struct{})
	stop := c.AfterFunc(func() { close(ran) })
	c.cancel(context.DeadlineExceeded)
	<-ran
	<-child.Done()
	if stop() || c.Err() != context.DeadlineExceeded || child.Err() != context.DeadlineExceeded || context.Cause(c) != context.DeadlineExceeded {
		t.Errorf("%v, %v, %v", c.Err(), child.Err(), context.Cause(c))
	}
	<-c.Done()
}

type texts []string

func (t texts) Most(i int) int                { return len(t[i]) + 10 }
func (t texts) Append(b []byte, i int) []byte { return append(b, t[i]...) }

// Messages that encode themselves arrive like others, whether or not there is room for them
// at once.
func TestSendRun(t *testing.T) {
	srv, addr := newTestServer(t, Options{})
	const n = 5000
	srv.HandleStream("/test.S/Small", func(s *Stream) error {
		var all texts
		for i := range n {
			size := i % 300
			if i%500 == 0 {
				size = frameBytes + i // larger than a frame
			}
			all = append(all, strings.Repeat("s", size))
		}
		for from := 0; from < n; {
			to := min(from+1+from%9, n)
			if err := s.SendRun(all, from, to, from%7 != 0 && to < n); err != nil {
				return err
			}
			from = to
		}
		return nil
	})
	for _, opts := range [][]grpc.CallOption{nil, {grpc.UseCompressor("gzip")}} {
		cc := dial(t, addr, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
		s, err := cc.NewStream(background(t), &grpc.StreamDesc{ServerStreams: true}, "/test.S/Small", opts...)
		if err != nil {
			t.Fatal(err)
		}
		s.SendMsg(new([]byte))
		s.CloseSend()
		for i := range n {
			var got []byte
			want := i % 300
			if i%500 == 0 {
				want = frameBytes + i
			}
			if err := s.RecvMsg(&got); err != nil || len(got) != want {
				t.Fatalf("message %d: %d bytes, %v; want %d", i, len(got), err, want)
			}
		}
		if err := s.RecvMsg(new([]byte)); err != io.EOF {
			t.Fatal(err)
		}
	}
}
