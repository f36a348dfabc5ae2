package h2

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	gkeepalive "google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

// theirCall is the call as seen by a grpc-go handler.
type theirCall struct {
	grpc.ServerStream
	ctx context.Context
}

func (c theirCall) Context() context.Context        { return c.ctx }
func (c theirCall) SetHeader(md metadata.MD) error  { return grpc.SetHeader(c.ctx, md) }
func (c theirCall) SendHeader(md metadata.MD) error { return grpc.SendHeader(c.ctx, md) }
func (c theirCall) setTrailer(md metadata.MD)       { grpc.SetTrailer(c.ctx, md) }
func (c theirCall) send(b []byte) error             { return c.SendMsg(&b) }
func (c theirCall) recv() (b []byte, err error) {
	err = c.RecvMsg(&b)
	return b, err
}

// theirServer serves the same methods with grpc-go.
func theirServer(t *testing.T, opts ...grpc.ServerOption) string {
	t.Helper()
	s := grpc.NewServer(append([]grpc.ServerOption{grpc.ForceServerCodecV2(rawCodec{})}, opts...)...)
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "test.S", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var req []byte
			if err := dec(&req); err != nil {
				return nil, err
			}
			b, err := testUnary(theirCall{ctx: ctx}, req)
			if err != nil {
				return nil, err
			}
			return &b, nil
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", ClientStreams: true, ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			return testStream(theirCall{s, s.Context()})
		}}, {StreamName: "Idle", ClientStreams: true, ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			<-s.Context().Done()
			return nil
		}}},
	}, struct{}{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// rawConn sends and receives single frames.
type rawConn struct {
	t   *testing.T
	nc  net.Conn
	fr  *http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
}

func dialRaw(t *testing.T, addr string, settings ...http2.Setting) *rawConn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := &rawConn{t: t, nc: nc, fr: http2.NewFramer(nc, nc)}
	c.enc = hpack.NewEncoder(&c.buf)
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.fr.AllowIllegalWrites = true
	io.WriteString(nc, preface)
	c.fr.WriteSettings(settings...)
	return c
}

func (c *rawConn) block(fields ...string) []byte {
	c.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return slices.Clone(c.buf.Bytes())
}

func (c *rawConn) headers(id uint32, end bool, fields ...string) {
	c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(fields...), EndStream: end, EndHeaders: true})
}

func call_(path string, more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "host", "content-type", "application/grpc", "te", "trailers"}, more...)
}

// framed returns a message with its prefix.
func framed(s string) []byte {
	return append([]byte{0, byte(len(s) >> 24), byte(len(s) >> 16), byte(len(s) >> 8), byte(len(s))}, s...)
}

var address = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// events reads until the stream or the connection has ended and returns what was received
// for the stream: data joined, without settings and window updates.
func (c *rawConn) events(id uint32) string {
	var out []string
	var data []byte
	add := func(s string) {
		if len(data) > 0 {
			out = append(out, "data "+hex.EncodeToString(data[:min(len(data), 64)])+fmt.Sprint(" ", len(data)))
			data = nil
		}
		out = append(out, s)
	}
	ended := false
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			var op *net.OpError
			switch {
			case err == io.EOF || errors.As(err, &op) && !op.Timeout():
				add("closed")
			default:
				add(err.Error())
			}
			break
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID != id {
				continue
			}
			var fields []string
			for _, x := range f.Fields {
				fields = append(fields, x.Name+": "+x.Value)
			}
			slices.Sort(fields[min(len(fields), 1):])
			ended = f.StreamEnded()
			add(fmt.Sprintf("headers end=%v %q", ended, fields))
		case *http2.DataFrame:
			if f.StreamID == id {
				data = append(data, f.Data()...)
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				add("reset " + f.ErrCode.String())
				return strings.Join(out, "\n")
			}
		case *http2.GoAwayFrame:
			text, _, _ := strings.Cut(string(f.DebugData()), ": ") // grpc-go appends the frame
			add(fmt.Sprintf("goaway %v %v %q", f.LastStreamID, f.ErrCode, text))
			continue
		case *http2.PingFrame:
			if !f.IsAck() {
				continue
			}
			if f.Data == [8]byte{'m', 'a', 'r', 'k'} {
				return strings.Join(out, "\n")
			}
		}
		if ended {
			// A reset may follow: ping, and read up to the answer.
			ended = false
			c.fr.WritePing(false, [8]byte{'m', 'a', 'r', 'k'})
		}
	}
	return address.ReplaceAllString(strings.Join(out, "\n"), "ADDR")
}

// racy are the exchanges after which grpc-go may or may not reset the stream, depending on
// whether it has seen the end of the request when it replies. After an exceeded deadline it
// either replies or resets the stream.
var racy = map[string]bool{"unknown encoding": true, "format": true, "compressed, no encoding": true, "compressed, identity": true,
	"gzip, broken": true, "stream, half": true, "stream": true}

// TestLikeGRPC sends the same frames to this server and to grpc-go's. The responses must be
// the same.
func TestLikeGRPC(t *testing.T) {
	big := strings.Repeat("v", 5000)
	long := strings.Repeat("l", 200_000)
	for name, talk := range map[string]func(c *rawConn){
		"unary": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, framed("hello"))
		},
		"unary in pieces": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			for _, b := range framed("hello") {
				c.fr.WriteData(1, false, []byte{b})
			}
			c.fr.WriteDataPadded(1, true, nil, make([]byte, 9))
		},
		"metadata": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary", "x", "1", "x", "2", "y-bin", "AAE=", "user-agent", "me", "grpc-timeout", "10S")...)
			c.fr.WriteData(1, true, framed("meta"))
		},
		"host": func(c *rawConn) {
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/test.S/No", "host", "me", "content-type", "application/grpc")
		},
		"two hosts": func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "host", "a", "host", "b")...) },
		"no authority": func(c *rawConn) {
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/test.S/Unary", "content-type", "application/grpc")
		},
		"no path": func(c *rawConn) {
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":authority", "host", "content-type", "application/grpc")
		},
		"GET": func(c *rawConn) {
			c.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/test.S/Unary", ":authority", "host", "content-type", "application/grpc")
		},
		"content type": func(c *rawConn) {
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/test.S/Unary", ":authority", "host", "content-type", "text/plain")
		},
		"no content type": func(c *rawConn) {
			c.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/test.S/Unary", ":authority", "host")
		},
		"subtype": func(c *rawConn) {
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/no/no", ":authority", "host", "content-type", "application/grpc+proto")
		},
		"semicolon": func(c *rawConn) {
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/no/no", ":authority", "host", "content-type", "application/grpc;x=y")
		},
		"unknown service":    func(c *rawConn) { c.headers(1, true, call_("/test.T/Unary")...) },
		"unknown method":     func(c *rawConn) { c.headers(1, true, call_("/test.S/Nope")...) },
		"unknown, more data": func(c *rawConn) { c.headers(1, false, call_("/test.S/Nope")...) },
		"no slash":           func(c *rawConn) { c.headers(1, true, call_("test.S.Unary")...) },
		"one slash":          func(c *rawConn) { c.headers(1, true, call_("/Unary")...) },
		"three slashes":      func(c *rawConn) { c.headers(1, true, call_("/a/b/c")...) },
		"connection header":  func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "connection", "close")...) },
		"binary metadata":    func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "z-bin", "%%%")...) },
		"timeout unit":       func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "grpc-timeout", "10X")...) },
		"timeout short":      func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "grpc-timeout", "S")...) },
		"timeout long":       func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "grpc-timeout", "123456789S")...) },
		"timeout number":     func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "grpc-timeout", "-1S")...) },
		"timeout zero":       func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "grpc-timeout", "0S")...) },
		"timeout huge": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary", "grpc-timeout", "99999999H")...)
			c.fr.WriteData(1, true, framed("deadline"))
		},
		"timeout passes": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary", "grpc-timeout", "30m")...)
			c.fr.WriteData(1, true, framed("wait"))
		},
		"no message": func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary")...) },
		"no message, later": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, nil)
		},
		"two messages": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, append(framed("a"), framed("b")...))
		},
		"two messages, open": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, false, append(framed("a"), framed("b")...))
		},
		"half a message": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, framed("hello")[:7])
		},
		"half a prefix": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, []byte{0, 0, 0})
		},
		"too large": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, false, []byte{0, 0, 100, 0, 0})
		},
		"format": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, []byte{7, 0, 0, 0, 1, 1})
		},
		"compressed, no encoding": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, []byte{1, 0, 0, 0, 1, 1})
		},
		"compressed, identity": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary", "grpc-encoding", "identity")...)
			c.fr.WriteData(1, true, []byte{1, 0, 0, 0, 1, 1})
		},
		"unknown encoding": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary", "grpc-encoding", "snappy")...)
			c.fr.WriteData(1, true, framed("hello"))
		},
		"unknown encoding, stream": func(c *rawConn) { c.headers(1, false, call_("/test.S/Stream", "grpc-encoding", "snappy")...) },
		"gzip, plain message": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary", "grpc-encoding", "gzip", "grpc-accept-encoding", "gzip")...)
			c.fr.WriteData(1, true, framed("hello"))
		},
		"gzip, broken": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary", "grpc-encoding", "gzip")...)
			c.fr.WriteData(1, true, []byte{1, 0, 0, 0, 2, 1, 1})
		},
		"error": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, framed("fail \x00ö%\xff~ "))
		},
		"big answer": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, framed("big 60000"))
		},
		"continuation": func(c *rawConn) {
			b := c.block(call_("/test.S/Unary", "x", big)...)
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:100]})
			c.fr.WriteContinuation(1, false, b[100:2000])
			c.fr.WriteContinuation(1, true, b[2000:])
			c.fr.WriteData(1, true, framed("meta"))
		},
		"priority and padding": func(c *rawConn) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(call_("/test.S/Unary")...), EndHeaders: true, PadLength: 20,
				Priority: http2.PriorityParam{StreamDep: 7, Weight: 3}})
			c.fr.WritePriority(1, http2.PriorityParam{StreamDep: 0})
			c.fr.WriteDataPadded(1, true, framed("hello"), make([]byte, 200))
		},
		"headers too long": func(c *rawConn) {
			b := c.block(call_("/test.S/Unary", "x", long[:60_000])...)
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16000], EndStream: true})
			c.fr.WriteContinuation(1, false, b[16000:32000])
			c.fr.WriteContinuation(1, true, b[32000:])
		},
		"even stream": func(c *rawConn) { c.headers(2, true, call_("/test.S/Unary")...) },
		"older stream": func(c *rawConn) {
			c.headers(3, false, call_("/test.S/Stream")...)
			c.headers(1, true, call_("/test.S/Unary")...)
		},
		"capital name":   func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "Upper", "1")...) },
		"pseudo after":   func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", ":path", "1")...) },
		"unknown pseudo": func(c *rawConn) { c.headers(1, true, append([]string{":what", "1"}, call_("/test.S/Unary")...)...) },
		"double pseudo":  func(c *rawConn) { c.headers(1, true, append([]string{":path", "/x/y"}, call_("/test.S/Unary")...)...) },
		"bad value":      func(c *rawConn) { c.headers(1, true, call_("/test.S/Unary", "x", "a\x00b")...) },
		"data after the end": func(c *rawConn) {
			c.headers(1, true, call_("/test.S/Idle")...)
			c.fr.WriteData(1, false, framed("a"))
		},
		"stream": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Stream")...)
			c.fr.WriteData(1, true, append(framed("a"), framed("many 3")...))
		},
		"stream, early header": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Stream")...)
			c.fr.WriteData(1, true, framed("header"))
		},
		"stream, ends first": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Stream")...)
			c.fr.WriteData(1, false, framed("end of it"))
		},
		"stream, no message": func(c *rawConn) { c.headers(1, true, call_("/test.S/Stream")...) },
		"stream, half": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Stream")...)
			c.fr.WriteData(1, true, []byte{0, 0, 0, 0, 9, 1})
		},
		"windows": func(c *rawConn) {
			c.headers(1, false, call_("/test.S/Unary")...)
			c.fr.WriteData(1, true, framed("big 200000"))
			c.fr.WriteWindowUpdate(1, 200_000)
			c.fr.WriteWindowUpdate(0, 200_000)
		},
		"ping": func(c *rawConn) { c.fr.WritePing(false, [8]byte{'m', 'a', 'r', 'k'}) },
		"pings": func(c *rawConn) {
			for range 5 {
				c.fr.WritePing(false, [8]byte{1})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got [2]string
			_, ours := newTestServer(t, Options{MaxMessage: 1 << 20, MaxHeaders: 32 << 10})
			theirs := theirServer(t, grpc.MaxRecvMsgSize(1<<20), grpc.MaxHeaderListSize(32<<10), grpc.KeepaliveEnforcementPolicy(gkeepalive.EnforcementPolicy{}))
			for i, addr := range []string{ours, theirs} {
				c := dialRaw(t, addr)
				talk(c)
				id := uint32(1)
				if name == "older stream" {
					id = 3
				}
				got[i] = c.events(id)
			}
			if name == "headers too long" { // grpc-go closes without a GOAWAY
				got[0] = strings.TrimPrefix(got[0], "goaway 1 COMPRESSION_ERROR \"hpack\"\n")
			}
			if racy[name] {
				for i := range got {
					got[i] = strings.TrimSuffix(got[i], "\nreset NO_ERROR")
				}
			}
			if name == "timeout passes" {
				if got[1] = strings.TrimSuffix(got[1], "\nreset CANCEL"); got[1] == "reset CANCEL" {
					got[1] = got[0]
				}
			}
			if got[0] != got[1] {
				t.Errorf("ours:\n%s\n\ngrpc-go's:\n%s", got[0], got[1])
			}
		})
	}
}

func fieldsFrom(pairs ...string) []hpack.HeaderField {
	var out []hpack.HeaderField
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return out
}
