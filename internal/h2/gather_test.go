package h2

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"quorate/internal/certs/certstest"
	"quorate/internal/listen"
)

// gatherConn is a connection underneath TLS that collects records.
type gatherConn struct {
	net.Conn
	gathering bool
	buf       []byte
	writes    atomic.Int64

	once   sync.Once
	stuck  chan struct{} // closed when the client has stopped reading; nil if it never does
	closed chan struct{}
}

func (c *gatherConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *gatherConn) Gather(buf []byte) { c.gathering, c.buf = true, buf }

func (c *gatherConn) Send() ([]byte, error) {
	c.gathering = false
	_, err := c.Write(c.buf)
	return c.buf, err
}

func (c *gatherConn) Write(b []byte) (int, error) {
	if c.gathering {
		c.buf = append(c.buf, b...)
		return len(b), nil
	}
	if c.writes.Add(1) > 20 && c.stuck != nil {
		select {
		case <-c.stuck:
		default:
			close(c.stuck)
		}
		<-c.closed
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

// secureServer serves connections with TLS on gatherConns, which it passes to accepted.
func secureServer(t *testing.T, srv *Server, stuck chan struct{}) (addr string, roots *x509.CertPool, accepted chan *gatherConn) {
	t.Helper()
	ca := certstest.NewCA("ca")
	pair := ca.Issue(certstest.Leaf{})
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted = make(chan *gatherConn, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		under := &gatherConn{Conn: nc, stuck: stuck, closed: make(chan struct{})}
		accepted <- under
		secure := tls.Server(under, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
		if secure.Handshake() == nil {
			srv.ServeConn(secure)
		}
	}()
	return l.Addr().String(), roots, accepted
}

// A large message over TLS is written with few system calls.
func TestRecordsAreGathered(t *testing.T) {
	srv, _ := newTestServer(t, Options{Workers: 1})
	want := strings.Repeat("0123456789", 200_000)
	srv.HandleUnary("/test.S/Pieces", func(*Stream, []byte) (Reply, error) {
		return Reply{Source: &pieces{left: []byte(want)}, Size: len(want)}, nil
	})
	addr, roots, accepted := secureServer(t, srv, nil)
	cc := dial(t, addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"})),
		grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(4<<20))
	var req, resp []byte
	if err := cc.Invoke(context.Background(), "/test.S/Pieces", &req, &resp); err != nil {
		t.Fatal(err)
	}
	if string(resp) != want {
		t.Errorf("%d bytes, want %d", len(resp), len(want))
	}
	if n := (<-accepted).writes.Load(); n > int64(len(want)/frameBytes/2) {
		t.Errorf("%d writes for %d records", n, len(want)/frameBytes)
	}
}

// A client that does not read does not delay the end of its connection: TLS would wait for
// the writer to say good-bye.
func TestStopBesideBlockedWriter(t *testing.T) {
	srv, _ := newTestServer(t, Options{Workers: 1})
	srv.HandleUnary("/test.S/Endless", func(*Stream, []byte) (Reply, error) {
		return Reply{Source: &pieces{left: make([]byte, 64<<20)}, Size: 64 << 20}, nil
	})
	stuck := make(chan struct{})
	addr, roots, _ := secureServer(t, srv, stuck)
	cc := dial(t, addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"})),
		grpc.WithInitialWindowSize(64<<20), grpc.WithInitialConnWindowSize(64<<20))
	done := make(chan error, 1)
	go func() {
		var req, resp []byte
		done <- cc.Invoke(context.Background(), "/test.S/Endless", &req, &resp)
	}()
	<-stuck
	srv.Stop()
	if err := <-done; err == nil {
		t.Error("the call has succeeded")
	}
}

// sniffed is a connection around another one.
type sniffed struct{ net.Conn }

func (s sniffed) Under() net.Conn { return s.Conn }

// Parts are written past the connections around a socket, but never past TLS.
func TestSocketOf(t *testing.T) {
	under := new(net.TCPConn)
	if got := socketOf(sniffed{sniffed{under}}); got != under {
		t.Errorf("got %T", got)
	}
	for _, nc := range []net.Conn{tls.Server(under, nil), sniffed{tls.Server(under, nil)}, sniffed{new(net.IPConn)}} {
		if got := socketOf(nc); got != nil {
			t.Errorf("%T: got %T", nc, got)
		}
	}
}

// behindMux returns the gRPC side of a port as a member opens it, and its address.
func behindMux(t *testing.T) (net.Listener, string) {
	t.Helper()
	l, err := listen.Listen(t.Context(), url.URL{Scheme: "http", Host: "127.0.0.1:0"}, listen.Options{Places: listen.NewPlaces(1)})
	if err != nil {
		t.Fatal(err)
	}
	mux := listen.NewMux(l, listen.Accepts{Plain: true})
	served := make(chan error, 1)
	go func() { served <- mux.Serve() }()
	t.Cleanup(func() {
		mux.Close()
		<-served
	})
	return mux.GRPC(), l.Addr().String()
}

// The listener of a member wraps its connections, and their sockets must be found: without
// them, large messages are copied, and nothing else shows it.
func TestSocketBehindMux(t *testing.T) {
	l, addr := behindMux(t)
	client, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte(preface)); err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, ok := socketOf(nc).(*net.TCPConn); !ok {
		t.Errorf("%T: got %T, want the socket", nc, socketOf(nc))
	}
}

// A connection that fails is read to its end before it is closed: otherwise the kernel
// resets it, and the client may not see why.
func TestReasonBehindMux(t *testing.T) {
	srv, _ := newTestServer(t, Options{Workers: 1})
	l, addr := behindMux(t)
	go srv.Serve(l)
	client, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	b := appendFrameHead(appendSettings([]byte(preface)), 0, frameData, 0, 0) // DATA without a stream
	if _, err := client.Write(append(b, make([]byte, 256<<10)...)); err != nil {
		t.Fatal(err)
	}
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(client)
	if err != nil || !strings.Contains(string(got), "DATA on a stream that is not open") {
		t.Errorf("got %q, %v", got, err)
	}
}
