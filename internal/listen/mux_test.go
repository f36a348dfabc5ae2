package listen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open listens on a free port of the loopback interface.
func open(t *testing.T) net.Listener {
	t.Helper()
	l, err := Listen(context.Background(), url.URL{Scheme: "http", Host: "127.0.0.1:0"}, Options{Flag: "listen-client-urls"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serveMux starts m and returns what Serve returned, after Close.
func serveMux(t *testing.T, m *Mux) (stop func() error) {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- m.Serve() }()
	stop = sync.OnceValue(func() error {
		m.Close()
		return <-result
	})
	t.Cleanup(func() { stop() })
	return stop
}

func dial(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestMuxServers runs a real gRPC server and a real HTTP server on one port,
// over TCP and over a unix socket.
func TestMuxServers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for _, u := range []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}, {Scheme: "unix", Path: socket}} {
		t.Run(u.Scheme, func(t *testing.T) {
			l, err := Listen(context.Background(), u, Options{})
			if err != nil {
				t.Fatal(err)
			}
			m := NewMux(l, Accepts{Plain: true})
			stop := serveMux(t, m)

			gs := grpc.NewServer()
			healthpb.RegisterHealthServer(gs, health.NewServer())
			hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				io.WriteString(w, r.Proto+" "+r.Method+" "+string(body))
			})}
			var servers sync.WaitGroup
			servers.Go(func() { gs.Serve(m.GRPC()) })
			servers.Go(func() { hs.Serve(m.HTTP()) })

			network, addr := l.Addr().Network(), l.Addr().String()
			transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addr)
			}}
			client := &http.Client{Transport: transport}
			target := "passthrough:///" + addr
			if network == "unix" {
				target = "unix:" + addr
			}
			conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if _, err := healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil {
					t.Errorf("gRPC: %v", err)
				}
				resp, err := client.Post("http://x/", "text/plain", strings.NewReader("PRI * HTTP/2.0\r\n"))
				if err != nil {
					t.Fatalf("HTTP: %v", err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if got, want := string(body), "HTTP/1.1 POST PRI * HTTP/2.0\r\n"; got != want {
					t.Errorf("HTTP: got %q, want %q", got, want)
				}
			}
			conn.Close()
			transport.CloseIdleConnections()
			gs.Stop()
			hs.Close()
			servers.Wait()
			if err := stop(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Serve returned %v", err)
			}
		})
	}
}

// TestMuxSides sends the first bytes one at a time, and checks the side and the bytes that
// arrive there.
func TestMuxSides(t *testing.T) {
	m := NewMux(open(t), Accepts{Plain: true})
	serveMux(t, m)
	for _, tt := range []struct {
		text string
		side net.Listener
	}{
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest", m.GRPC()},
		{"GET / HTTP/1.1\r\n\r\n", m.HTTP()},
		{"P", nil},
		{"PUT / HTTP/1.1\r\n\r\n", m.HTTP()},
		{"PRI * HTTP/1.1\r\n\r\n", m.HTTP()},
		{"\x16\x03\x01", m.HTTP()}, // TLS on a port without TLS
	} {
		conn := dial(t, m.root.Addr())
		for i := range len(tt.text) {
			if _, err := io.WriteString(conn, tt.text[i:i+1]); err != nil {
				t.Fatal(err)
			}
		}
		if tt.side == nil {
			conn.Close() // closed before it could be classified
			continue
		}
		got, err := tt.side.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.(*net.TCPConn).CloseWrite()
		data, err := io.ReadAll(got)
		if err != nil || string(data) != tt.text {
			t.Errorf("%q arrives as %q, %v", tt.text, data, err)
		}
		got.Close()
	}
}

// expectEOF waits until the peer has closed conn.
func expectEOF(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connection is still open: %v", err)
	}
}

func TestMuxDropsTheSilent(t *testing.T) {
	m := NewMux(open(t), Accepts{Plain: true})
	m.sniffTimeout = 20 * time.Millisecond
	serveMux(t, m)
	silent, slow := dial(t, m.root.Addr()), dial(t, m.root.Addr())
	io.WriteString(slow, "PRI *")
	expectEOF(t, silent)
	expectEOF(t, slow)
}

func TestMuxEvictsTheOldest(t *testing.T) {
	m := NewMux(open(t), Accepts{Plain: true})
	m.maxSniffing = 2
	serveMux(t, m)
	first := dial(t, m.root.Addr())
	dial(t, m.root.Addr())
	dial(t, m.root.Addr())
	expectEOF(t, first)
	last := dial(t, m.root.Addr())
	io.WriteString(last, "GET / HTTP/1.1\r\n")
	got, err := m.HTTP().Accept()
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
}

// TestMuxClose closes the mux with connections in every state; goleak detects goroutines that
// remain.
func TestMuxClose(t *testing.T) {
	m := NewMux(open(t), Accepts{Plain: true})
	stop := serveMux(t, m)
	silent, waiting := dial(t, m.root.Addr()), dial(t, m.root.Addr())
	io.WriteString(waiting, "GET / HTTP/1.1\r\n")
	accepted := dial(t, m.root.Addr())
	io.WriteString(accepted, preface)
	got, err := m.GRPC().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	blocked := make(chan error, 1)
	go func() {
		_, err := m.GRPC().Accept()
		blocked <- err
	}()
	if err := stop(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v", err)
	}
	if err := <-blocked; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept returned %v", err)
	}
	expectEOF(t, silent)
	expectEOF(t, waiting)
	if _, err := m.HTTP().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close returned %v", err)
	}
	io.WriteString(accepted, "more")
	buf := make([]byte, len(preface)+4)
	if _, err := io.ReadFull(got, buf); err != nil || !bytes.HasSuffix(buf, []byte("more")) {
		t.Errorf("a connection that was handed over was cut: %q, %v", buf, err)
	}
}

func TestMuxClosedSide(t *testing.T) {
	m := NewMux(open(t), Accepts{Plain: true})
	serveMux(t, m)
	m.HTTP().Close()
	dropped := dial(t, m.root.Addr())
	io.WriteString(dropped, "GET / HTTP/1.1\r\n")
	expectEOF(t, dropped)
	kept := dial(t, m.root.Addr())
	io.WriteString(kept, preface)
	got, err := m.GRPC().Accept()
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
}

// timed is a listener whose connections record their deadline.
type timed struct{ net.Listener }

type timedConn struct {
	net.Conn
	deadline time.Time
}

func (l timed) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return &timedConn{Conn: conn}, err
}

func (c *timedConn) SetDeadline(t time.Time) error {
	c.deadline = t
	return c.Conn.SetDeadline(t)
}

// TestMuxLiftsTheDeadline checks that a connection that was handed over has no deadline.
func TestMuxLiftsTheDeadline(t *testing.T) {
	m := NewMux(timed{open(t)}, Accepts{Plain: true})
	serveMux(t, m)
	for text, side := range map[string]net.Listener{preface: m.GRPC(), "GET /": m.HTTP()} {
		io.WriteString(dial(t, m.root.Addr()), text)
		got, err := side.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if d := got.(*sniffedConn).Conn.(*timedConn).deadline; !d.IsZero() {
			t.Errorf("%q: deadline %v is left", text, d)
		}
		got.Close()
	}
}

// failing is a listener that fails a few times as if out of file descriptors.
type failing struct {
	net.Listener
	left int
}

type temporaryError struct{}

func (temporaryError) Error() string   { return "too many open files" }
func (temporaryError) Temporary() bool { return true }

func (f *failing) Accept() (net.Conn, error) {
	if f.left > 0 {
		f.left--
		return nil, temporaryError{}
	}
	return f.Listener.Accept()
}

func TestMuxSurvivesTemporaryErrors(t *testing.T) {
	m := NewMux(&failing{open(t), 3}, Accepts{Plain: true})
	serveMux(t, m)
	conn := dial(t, m.root.Addr())
	io.WriteString(conn, "GET / HTTP/1.1\r\n")
	got, err := m.HTTP().Accept()
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
}

func TestListenErrors(t *testing.T) {
	l := open(t)
	defer l.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		u    url.URL
		want string
	}{
		{url.URL{Scheme: "http", Host: l.Addr().String()}, "--listen-peer-urls=http://" + l.Addr().String() + ": listen tcp " + l.Addr().String() + ": bind: address already in use: another process or another flag uses it; stop that process, or choose another port"},
		{url.URL{Scheme: "http", Host: "192.0.2.7:1"}, "--listen-peer-urls=http://192.0.2.7:1: listen tcp 192.0.2.7:1: bind: cannot assign requested address: no interface of this machine has the address; listen on one that has it, or on 0.0.0.0"},
		{url.URL{Scheme: "https", Host: "127.0.0.1:0"}, `--listen-peer-urls=https://127.0.0.1:0: no TLS for scheme "https" without --cert-file and --key-file`},
		{url.URL{Scheme: "unix", Path: file}, "--listen-peer-urls=unix://" + file + ": " + file + " exists and is not a socket"},
	} {
		_, err := Listen(context.Background(), tt.u, Options{Flag: "listen-peer-urls"})
		if err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
	want := "listen tcp " + l.Addr().String() + ": bind: address already in use: --listen-addr: another process or another flag uses it; stop that process, or choose another port"
	if _, err := TCP(context.Background(), "listen-addr", l.Addr().String()); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestListenReusePort(t *testing.T) {
	first, err := Listen(context.Background(), url.URL{Scheme: "http", Host: "127.0.0.1:0"}, Options{ReusePort: true})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	again := url.URL{Scheme: "http", Host: first.Addr().String()}
	second, err := Listen(context.Background(), again, Options{ReusePort: true, ReuseAddress: true})
	if err != nil {
		t.Fatalf("second listener with SO_REUSEPORT: %v", err)
	}
	second.Close()
}

func TestListenUnixAfterKill(t *testing.T) {
	u := url.URL{Scheme: "unix", Path: filepath.Join(t.TempDir(), "s")}
	left, err := Listen(context.Background(), u, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(context.Background(), u, Options{Flag: "x"}); err == nil {
		t.Errorf("a socket that is served was taken over")
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	again, err := Listen(context.Background(), u, Options{})
	if err != nil {
		t.Fatalf("a socket that was left behind stops the member: %v", err)
	}
	again.Close()
}

func TestPlaces(t *testing.T) {
	l, err := Listen(context.Background(), url.URL{Scheme: "http", Host: "127.0.0.1:0"}, Options{Places: NewPlaces(1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial(t, l.Addr())
	dial(t, l.Addr())
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var firstClosed atomic.Bool
	var second sync.WaitGroup
	second.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		if !firstClosed.Load() {
			t.Errorf("second connection was accepted beside the first")
		}
		c.Close()
	})
	for range 100 {
		runtime.Gosched() // give an Accept that does not block time to show it
	}
	firstClosed.Store(true)
	first.Close()
	second.Wait()
}
