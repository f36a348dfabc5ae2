package h2

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/status"
)

// TestProtocolErrors violates the rules of HTTP/2.
func TestProtocolErrors(t *testing.T) {
	open := func(c *rawConn) { c.headers(1, false, call_("/test.S/Stream")...) }
	for name, tt := range map[string]struct {
		talk func(c *rawConn)
		want string
	}{
		"frame too large": {func(c *rawConn) { c.fr.WriteRawFrame(0xcc, 0, 0, make([]byte, frameBytes+1)) }, "goaway 0 FRAME_SIZE_ERROR"},
		"unknown frame": {func(c *rawConn) {
			c.fr.WriteRawFrame(0xcc, 0xff, 99, []byte("what"))
			c.fr.WritePing(false, [8]byte{'m', 'a', 'r', 'k'})
		}, ""},
		"DATA on stream 0":         {func(c *rawConn) { c.fr.WriteRawFrame(frameData, 0, 0, []byte{1}) }, "goaway 0 PROTOCOL_ERROR"},
		"DATA on an idle stream":   {func(c *rawConn) { c.fr.WriteRawFrame(frameData, 0, 5, []byte{1}) }, "goaway 0 PROTOCOL_ERROR"},
		"too much padding":         {func(c *rawConn) { open(c); c.fr.WriteRawFrame(frameData, flagPadded, 1, []byte{5, 1}) }, "goaway 1 PROTOCOL_ERROR"},
		"padding of nothing":       {func(c *rawConn) { open(c); c.fr.WriteRawFrame(frameData, flagPadded, 1, nil) }, "goaway 1 FRAME_SIZE_ERROR"},
		"reset of an idle stream":  {func(c *rawConn) { c.fr.WriteRSTStream(7, http2.ErrCodeCancel) }, "goaway 0 PROTOCOL_ERROR"},
		"short reset":              {func(c *rawConn) { open(c); c.fr.WriteRawFrame(frameRSTStream, 0, 1, []byte{1}) }, "goaway 1 FRAME_SIZE_ERROR"},
		"settings on a stream":     {func(c *rawConn) { c.fr.WriteRawFrame(frameSettings, 0, 1, nil) }, "goaway 0 PROTOCOL_ERROR"},
		"short settings":           {func(c *rawConn) { c.fr.WriteRawFrame(frameSettings, 0, 0, []byte{1, 2, 3}) }, "goaway 0 FRAME_SIZE_ERROR"},
		"ack with settings":        {func(c *rawConn) { c.fr.WriteRawFrame(frameSettings, flagAck, 0, make([]byte, 6)) }, "goaway 0 FRAME_SIZE_ERROR"},
		"window too large":         {func(c *rawConn) { c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, "goaway 0 FLOW_CONTROL_ERROR"},
		"frame size out of range":  {func(c *rawConn) { c.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, "goaway 0 PROTOCOL_ERROR"},
		"push":                     {func(c *rawConn) { c.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }, "goaway 0 PROTOCOL_ERROR"},
		"push promise":             {func(c *rawConn) { c.fr.WriteRawFrame(framePushPromise, flagEndHeaders, 1, make([]byte, 4)) }, "goaway 0 PROTOCOL_ERROR"},
		"ping on a stream":         {func(c *rawConn) { c.fr.WriteRawFrame(framePing, 0, 1, make([]byte, 8)) }, "goaway 0 PROTOCOL_ERROR"},
		"short ping":               {func(c *rawConn) { c.fr.WriteRawFrame(framePing, 0, 0, make([]byte, 7)) }, "goaway 0 FRAME_SIZE_ERROR"},
		"window by nothing":        {func(c *rawConn) { c.fr.WriteWindowUpdate(0, 0) }, "goaway 0 PROTOCOL_ERROR"},
		"stream window by nothing": {func(c *rawConn) { open(c); c.fr.WriteWindowUpdate(1, 0) }, "reset PROTOCOL_ERROR"},
		"window overflow":          {func(c *rawConn) { c.fr.WriteWindowUpdate(0, maxWindow) }, "goaway 0 FLOW_CONTROL_ERROR"},
		"stream window overflow":   {func(c *rawConn) { open(c); c.fr.WriteWindowUpdate(1, maxWindow) }, "reset FLOW_CONTROL_ERROR"},
		"idle window":              {func(c *rawConn) { c.fr.WriteWindowUpdate(9, 1) }, "goaway 0 PROTOCOL_ERROR"},
		"short window":             {func(c *rawConn) { c.fr.WriteRawFrame(frameWindowUpdate, 0, 0, []byte{1}) }, "goaway 0 FRAME_SIZE_ERROR"},
		"continuation alone":       {func(c *rawConn) { c.fr.WriteContinuation(1, true, nil) }, "goaway 0 PROTOCOL_ERROR"},
		"interrupted block": {func(c *rawConn) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(call_("/test.S/Stream")...)})
			c.fr.WritePing(false, [8]byte{})
		}, "goaway 1 PROTOCOL_ERROR"},
		"bad compression": {func(c *rawConn) {
			c.fr.WriteRawFrame(frameHeaders, flagEndHeaders, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		}, "goaway 1 COMPRESSION_ERROR"},
		"priority of the wrong length": {func(c *rawConn) { open(c); c.fr.WriteRawFrame(framePriority, 0, 1, []byte{1}) }, "reset FRAME_SIZE_ERROR"},
		"depends on itself":            {func(c *rawConn) { open(c); c.fr.WritePriority(1, http2.PriorityParam{StreamDep: 1}) }, "reset PROTOCOL_ERROR"},
		"goaway on a stream":           {func(c *rawConn) { c.fr.WriteRawFrame(frameGoAway, 0, 1, make([]byte, 8)) }, "goaway 0 PROTOCOL_ERROR"},
		"beyond the stream's window": {func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Idle")...)
			for range 5 {
				c.fr.WriteData(1, false, append([]byte{0, 0, 0, 0x3f, 0xfb}, make([]byte, frameBytes-prefixLen)...))
			}
		}, "reset FLOW_CONTROL_ERROR"},
		"empty frames": {func(c *rawConn) {
			open(c)
			for range emptyFrames + 2 {
				c.fr.WriteData(1, false, nil)
			}
		}, "goaway 1 ENHANCE_YOUR_CALM"},
		"endless continuation": {func(c *rawConn) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(call_("/test.S/Stream")...)})
			for range 10_000 {
				if c.fr.WriteContinuation(1, false, nil) != nil {
					return
				}
			}
		}, "goaway 1 PROTOCOL_ERROR"},
		"header bomb": {func(c *rawConn) {
			c.headers(1, false, append(call_("/test.S/Stream"), "x", strings.Repeat("b", 3000))...) // goes into the dynamic table
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: append(c.block(call_("/test.S/Stream")...), bytesOf(0xbe, 5000)...), EndHeaders: true})
		}, "reset FRAME_SIZE_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, addr := newTestServer(t, Options{MaxHeaders: 16 << 10})
			c := dialRaw(t, addr)
			c.talk(tt.talk)
			id := uint32(1)
			if name == "header bomb" {
				id = 5
			}
			got := c.events(id)
			if i := strings.LastIndex(got, "\nclosed"); i >= 0 {
				got = got[:i]
			}
			if got, _, _ = strings.Cut(lastLine(got), ` "`); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func bytesOf(b byte, n int) []byte { return []byte(strings.Repeat(string([]byte{b}), n)) }

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }

func (c *rawConn) talk(f func(*rawConn)) {
	done := make(chan struct{})
	go func() { // the server may stop reading
		f(c)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
	}
}

// A client that sends pings, settings, or calls without a body, and never reads, must make
// the server stop reading rather than fill its memory.
func TestFloodWithoutReading(t *testing.T) {
	id := uint32(1)
	for name, flood := range map[string]func(c *rawConn) error{
		"settings": func(c *rawConn) error { return c.fr.WriteSettings() },
		"unknown methods": func(c *rawConn) error {
			c.buf.Reset()
			id += 2
			return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(call_("/no/no")...), EndHeaders: true, EndStream: true})
		},
		"calls": func(c *rawConn) error {
			id += 2
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(call_("/test.S/Unary")...), EndHeaders: true})
			return c.fr.WriteData(id, true, framed("hello"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			id = 1
			srv, addr := newTestServer(t, Options{MaxStreams: 100})
			c := dialRaw(t, addr)
			c.nc.(*net.TCPConn).SetReadBuffer(4 << 10)
			c.nc.SetWriteDeadline(time.Now().Add(2 * time.Second))
			n := 0
			for ; n < 3_000_000; n++ {
				if err := flood(c); err != nil {
					break
				}
			}
			if n == 3_000_000 {
				t.Skip("the kernel has buffered everything") // governed by its settings
			}
			srv.mu.Lock()
			defer srv.mu.Unlock()
			for c := range srv.conns {
				c.mu.Lock()
				if len(c.w.buf) > 4*controlBytes+outBytes || int(c.handlers) > 100 {
					t.Errorf("after %d frames %d bytes wait to be written, and %d handlers run", n, len(c.w.buf), c.handlers)
				}
				c.mu.Unlock()
			}
		})
	}
}

// Streams that are reset immediately leave no more handlers than the stream limit.
func TestRapidReset(t *testing.T) {
	srv, addr := newTestServer(t, Options{MaxStreams: 10})
	running := make(chan struct{}, 1000)
	release := make(chan struct{})
	srv.HandleUnary("/test.S/Block", func(s *Stream, _ []byte) (Reply, error) {
		running <- struct{}{}
		<-release
		return Reply{}, nil
	})
	c := dialRaw(t, addr)
	for i := range 100 {
		id := uint32(2*i + 1)
		c.headers(id, false, call_("/test.S/Block")...)
		c.fr.WriteData(id, true, framed("a"))
		c.fr.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	for range 10 {
		<-running
	}
	for srv.conn(t).waits() < 10 {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-running:
		t.Error("an eleventh handler runs")
	default:
	}
	close(release)
	for range 90 {
		<-running
	}
}

// conn returns the server's only connection.
func (srv *Server) conn(t *testing.T) *conn {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for c := range srv.conns {
		return c
	}
	t.Fatal("no connection")
	return nil
}

func (c *conn) waits() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handlers
}

// Messages that are announced but not sent occupy no more than the limit.
func TestAnnouncedMessages(t *testing.T) {
	srv, addr := newTestServer(t, Options{MaxMessage: 8 << 20})
	c := dialRaw(t, addr)
	for i := range 50 {
		id := uint32(2*i + 1)
		c.headers(id, false, call_("/test.S/Unary")...)
		prefix := make([]byte, prefixLen)
		binary.BigEndian.PutUint32(prefix[1:], 8<<20)
		c.fr.WriteData(id, false, prefix)
	}
	c.fr.WritePing(false, [8]byte{'m', 'a', 'r', 'k'})
	c.events(99)
	sc := srv.conn(t)
	sc.mu.Lock()
	extended, wanting := sc.in.extended, len(sc.in.wanting)
	sc.mu.Unlock()
	if extended == 0 || extended > extendedBytes || wanting == 0 {
		t.Errorf("%d bytes given, %d streams wait", extended, wanting)
	}
	// When the streams that hold a window end, the others get theirs.
	for i := range 40 {
		c.fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
	}
	c.fr.WritePing(false, [8]byte{'m', 'a', 'r', 'k'})
	c.events(99)
	sc.mu.Lock()
	defer sc.mu.Unlock()
	given := 0
	for s := range sc.streams.all {
		if s.flow.extended > 0 {
			given++
		}
		if s.id < 81 {
			t.Errorf("stream %d is still there", s.id)
		}
	}
	if given == 0 {
		t.Error("nobody got the room that was left")
	}
}

func TestTooManyPings(t *testing.T) {
	_, addr := newTestServer(t, Options{})
	c := dialRaw(t, addr)
	for range 4 {
		c.fr.WritePing(false, [8]byte{1})
	}
	if got := c.events(1); !strings.HasPrefix(got, `goaway 0 ENHANCE_YOUR_CALM "too_many_pings"`) {
		t.Error(got)
	}
}

func TestKeepalive(t *testing.T) {
	_, addr := newTestServer(t, Options{Keepalive: Keepalive{Time: 20 * time.Millisecond, Timeout: 50 * time.Millisecond}})
	c := dialRaw(t, addr)
	pings := 0
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			break // closed because a ping was not acknowledged
		}
		if p, ok := f.(*http2.PingFrame); ok && !p.IsAck() {
			if pings++; pings < 3 {
				c.fr.WritePing(true, p.Data)
			}
		}
	}
	if pings != 3 {
		t.Errorf("%d pings before the end, want 3", pings)
	}
}

// A client that sets its dynamic table to zero expects a table size update.
func TestTableSize(t *testing.T) {
	_, addr := newTestServer(t, Options{})
	c := dialRaw(t, addr, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 60})
	c.fr.ReadMetaHeaders = nil
	c.headers(1, true, call_("/no/no")...)
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := f.(*http2.RSTStreamFrame); ok {
			if r.ErrCode != http2.ErrCodeInternal {
				t.Errorf("headers beyond the client's limit: %v", r.ErrCode)
			}
			break
		}
	}
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 6000})
	c.headers(3, true, call_("/no/no")...)
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.HeadersFrame); ok {
			if b := h.HeaderBlockFragment(); b[0] != emptyTable && b[0] != status200 {
				t.Errorf("the block begins with %x", b[0])
			}
			return
		}
	}
}

func FuzzFrames(f *testing.F) {
	var seed strings.Builder
	fr := http2.NewFramer(&seed, nil)
	fr.WriteSettings()
	c := &rawConn{fr: fr}
	f.Add([]byte(seed.String()))
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01"))
	_ = c
	f.Fuzz(func(t *testing.T, frames []byte) {
		srv := New(Options{MaxHeaders: 4 << 10, MaxStreams: 50, MaxMessage: 1 << 16})
		srv.HandleUnary("/test.S/Unary", unaryOf)
		srv.HandleStream("/test.S/Stream", func(s *Stream) error { return testStream(ourCall{s}) })
		client, server := net.Pipe()
		go io.Copy(io.Discard, client)
		served := make(chan struct{})
		go func() {
			srv.ServeConn(server)
			close(served)
		}()
		io.WriteString(client, preface)
		client.Write(frames)
		client.Close()
		<-served
		srv.handlers.Wait()
	})
}

// FuzzRequest also checks that a call is answered alike whether or not its connection knows the
// headers from a call before.
func FuzzRequest(f *testing.F) {
	f.Add(":path", "/a/b", "grpc-timeout", "10S", "x-bin", "AAA")
	f.Add("grpc-timeout", "0S", ":path", "/a/b", "grpc-timeout", "1S")
	f.Add("grpc-timeout", "1S", ":path", "/a/b", "grpc-timeout", "0S")
	f.Add("grpc-timeout", "x", "grpc-timeout", "123456789S", ":path", "/a/b")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2, n3, v3 string) {
		fields := fieldsFrom(":method", "POST", ":authority", "a", "content-type", "application/grpc", n1, v1, n2, v2, n3, v3)
		known := slices.Clone(fields)
		for i := range known {
			switch known[i].Name {
			case "grpc-timeout":
				known[i].Value = "1S"
			case ":path":
				known[i].Value = "/a/c"
			}
		}
		c := requests{common: new(atomic.Pointer[parsed])}
		first, firstRefused := parseRequest(fields)
		c.parse(&headerBlock{fields: known})
		for range 2 {
			r, refused := c.parse(&headerBlock{fields: fields})
			if !sameRefusal(refused, firstRefused) || refused == nil && (r.timeout != first.timeout || r.path != first.path) {
				t.Errorf("a known call: %+v, %+v; a new one: %+v, %+v", r, refused, first, firstRefused)
			}
			if refused == nil && len(r.md[":authority"]) != 1 {
				t.Errorf("no authority in %v", r.md)
			}
			if refused != nil && refused.status != nil {
				var l fieldList
				l.early(refused.http, r.subtype, refused.status)
			}
		}
	})
}

func sameRefusal(a, b *refusal) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.code == b.code && a.http == b.http && a.status.String() == b.status.String()
}

func FuzzMessage(f *testing.F) {
	f.Add("plain")
	f.Add("ö\xff%\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, b := range []byte(encodeMessage(s)) {
			if b < ' ' || b > '~' {
				t.Fatalf("%q encodes as %q", s, encodeMessage(s))
			}
		}
		_ = status.New(0, s)
		_ = fmt.Sprint(parseTimeout(s))
	})
}
