package listen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"quorate/internal/certs/certstest"
)

// What is gathered is written at once, in order with what is written before and after.
func TestGather(t *testing.T) {
	p := newPKI(t)
	l := NewListener(open(t), Accepts{TLS: p.server})
	defer l.Close()
	want := strings.Repeat("0123456789", 10_000)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		under := conn.(*tls.Conn).NetConn().(*helloConn)
		for i := 0; i < len(want); i += 25_000 {
			under.Gather(nil)
			io.WriteString(conn, want[i:i+20_000])
			under.Send()
			io.WriteString(conn, want[i+20_000:i+25_000])
		}
	}()
	conn := tls.Client(dial(t, l.Addr()), p.client())
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != want {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
	}
}

// pki is the server's TLS configuration and what clients need to trust it.
type pki struct {
	server *TLS
	roots  *x509.CertPool

	mu      sync.Mutex
	refused []error // what Refused was called with
}

func newPKI(t *testing.T, protocols ...string) *pki {
	t.Helper()
	ca := certstest.NewCA("ca")
	pair := ca.Issue(certstest.Leaf{})
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	p := &pki{roots: x509.NewCertPool()}
	p.roots.AppendCertsFromPEM(ca.PEM)
	p.server = &TLS{
		Config: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols},
		Refused: func(_ *tls.Conn, err error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.refused = append(p.refused, err)
		},
	}
	return p
}

func (p *pki) client(protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: p.roots, ServerName: "localhost", NextProtos: protocols}
}

// TestTLSServers runs a gRPC server and an HTTP server on one port, with TLS,
// and with and without TLS.
func TestTLSServers(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprint("plain too: ", plain), func(t *testing.T) {
			p := newPKI(t, "h2", "http/1.1")
			l := open(t)
			m := NewMux(l, Accepts{Plain: plain, TLS: p.server})
			stop := serveMux(t, m)
			gs := grpc.NewServer()
			healthpb.RegisterHealthServer(gs, health.NewServer())
			hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, r.Proto, " ", r.TLS != nil)
			})}
			var servers sync.WaitGroup
			servers.Go(func() { gs.Serve(m.GRPC()) })
			servers.Go(func() { hs.Serve(m.HTTP()) })

			check := func(creds credentials.TransportCredentials) error {
				conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(creds))
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{})
				return err
			}
			get := func(scheme string, h2 bool) string {
				transport := &http.Transport{TLSClientConfig: p.client(), ForceAttemptHTTP2: h2}
				defer transport.CloseIdleConnections()
				resp, err := (&http.Client{Transport: transport}).Get(scheme + "://" + l.Addr().String() + "/")
				if err != nil {
					return err.Error()
				}
				defer resp.Body.Close()
				body, _ := io.ReadAll(resp.Body)
				return string(body)
			}
			if err := check(credentials.NewTLS(p.client())); err != nil {
				t.Errorf("gRPC over TLS: %v", err)
			}
			if got, want := get("https", true), "HTTP/2.0 true"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if got, want := get("https", false), "HTTP/1.1 true"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if err := check(insecure.NewCredentials()); (err == nil) != plain {
				t.Errorf("gRPC without TLS: %v", err)
			}
			if got, want := get("http", false), "HTTP/1.1 false"; (got == want) != plain {
				t.Errorf("without TLS: got %q", got)
			}
			gs.Stop()
			hs.Close()
			servers.Wait()
			if err := stop(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Serve returned %v", err)
			}
		})
	}
}

// TestTLSSides checks the side of clients by the protocols that they offer.
func TestTLSSides(t *testing.T) {
	p := newPKI(t, "h2", "http/1.1")
	m := NewMux(open(t), Accepts{TLS: p.server})
	serveMux(t, m)
	for _, tt := range []struct {
		offers []string
		side   net.Listener
		agreed string
	}{
		{[]string{"h2"}, m.GRPC(), "h2"},
		{[]string{"grpc-exp", "h2"}, m.GRPC(), "h2"},
		{[]string{"h2", "http/1.1"}, m.HTTP(), "h2"},
		{[]string{"http/1.1", "h2"}, m.HTTP(), "h2"},
		{[]string{"http/1.1"}, m.HTTP(), "http/1.1"},
		{nil, m.HTTP(), ""},
	} {
		conn := tls.Client(dial(t, m.root.Addr()), p.client(tt.offers...))
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		got, err := tt.side.Accept()
		if err != nil {
			t.Fatal(err)
		}
		// net/http needs this type for HTTP/2 and for its TLS state
		if agreed := got.(*tls.Conn).ConnectionState().NegotiatedProtocol; agreed != tt.agreed {
			t.Errorf("%v: agreed on %q, want %q", tt.offers, agreed, tt.agreed)
		}
		io.WriteString(conn, "text")
		if b, err := io.ReadAll(io.LimitReader(got, 4)); err != nil || string(b) != "text" {
			t.Errorf("%v: read %q, %v", tt.offers, b, err)
		}
		conn.Close()
		got.Close()
	}
	if err := tls.Client(dial(t, m.root.Addr()), p.client("spdy")).Handshake(); err == nil {
		t.Error("a client that speaks nothing of ours was accepted")
	}
}

// TestTLSRefuses sends invalid handshakes, and valid ones that Check rejects.
func TestTLSRefuses(t *testing.T) {
	p := newPKI(t)
	why := errors.New("not from there")
	var remote atomic.Value
	p.server.Check = func(_ context.Context, _ tls.ConnectionState, from net.Addr) error {
		remote.Store(from.String())
		return why
	}
	l := NewListener(open(t), Accepts{TLS: p.server})
	defer l.Close()
	random := make([]byte, 4096)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	hello := []byte{0x16, 3, 1, 0x40, 0} // announces more than it sends
	for _, bytes := range [][]byte{random, append(hello, random...), []byte("GET / HTTP/1.1\r\n\r\n"), []byte(preface), slices.Repeat([]byte{0x16}, 3000)} {
		conn := dial(t, l.Addr())
		conn.Write(bytes)
		conn.(*net.TCPConn).CloseWrite()
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%.20q: still open", bytes)
		}
	}
	p.mu.Lock()
	if len(p.refused) != 5 {
		t.Errorf("told of %d refused connections, want 5: %v", len(p.refused), p.refused)
	}
	p.mu.Unlock()

	conn := tls.Client(dial(t, l.Addr()), p.client())
	conn.Handshake()
	expectEOF(t, conn)
	if got, want := remote.Load(), conn.LocalAddr().String(); got != want {
		t.Errorf("checked address %v, want %v", got, want)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.refused[len(p.refused)-1]; !errors.Is(last, why) {
		t.Errorf("told of %v, want %v", last, why)
	}
}

func TestHandshakesTakeBoundedTime(t *testing.T) {
	p := newPKI(t)
	m := NewMux(open(t), Accepts{TLS: p.server})
	m.sniffTimeout = 20 * time.Millisecond
	serveMux(t, m)
	silent, slow := dial(t, m.root.Addr()), dial(t, m.root.Addr())
	slow.Write([]byte{0x16, 3, 1, 2, 0, 1})
	expectEOF(t, silent)
	expectEOF(t, slow)
}

func TestHandshakesAreBounded(t *testing.T) {
	p := newPKI(t)
	m := NewMux(open(t), Accepts{Plain: true, TLS: p.server})
	if m.maxSniffing != DefaultMaxHandshakes {
		t.Errorf("up to %d handshakes, want %d", m.maxSniffing, DefaultMaxHandshakes)
	}
	m.maxSniffing = 2
	serveMux(t, m)
	first := dial(t, m.root.Addr())
	first.Write([]byte{0x16})
	dial(t, m.root.Addr())
	dial(t, m.root.Addr())
	expectEOF(t, first)
	last := tls.Client(dial(t, m.root.Addr()), p.client())
	if err := last.Handshake(); err != nil {
		t.Errorf("a new connection among slow ones: %v", err)
	}
}

// TestTLSClose closes the listener with handshakes in every state; goleak detects goroutines
// that remain.
func TestTLSClose(t *testing.T) {
	p := newPKI(t)
	checking := make(chan struct{})
	p.server.Check = func(ctx context.Context, _ tls.ConnectionState, _ net.Addr) error {
		close(checking)
		<-ctx.Done() // a name server that does not respond
		return ctx.Err()
	}
	l := NewListener(open(t), Accepts{TLS: p.server})
	silent := dial(t, l.Addr())
	checked := tls.Client(dial(t, l.Addr()), p.client())
	go checked.Handshake()
	<-checking
	l.Close()
	expectEOF(t, silent)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close returned %v", err)
	}
}

// broken is a listener that fails permanently.
type broken struct{ net.Listener }

var errBroken = errors.New("broken")

func (broken) Accept() (net.Conn, error) { return nil, errBroken }

func TestListenerSaysWhyItFailed(t *testing.T) {
	l := NewListener(broken{open(t)}, Accepts{TLS: newPKI(t).server})
	if _, err := l.Accept(); !errors.Is(err, errBroken) {
		t.Errorf("got %v, want %v", err, errBroken)
	}
	l.Close()
	if root := open(t); NewListener(root, Accepts{Plain: true}) != root {
		t.Error("a port without TLS is wrapped")
	} else {
		root.Close()
	}
}

func TestMixedListener(t *testing.T) {
	p := newPKI(t)
	l := NewListener(open(t), Accepts{Plain: true, TLS: p.server})
	defer l.Close()
	plain, secure := dial(t, l.Addr()), tls.Client(dial(t, l.Addr()), p.client())
	for _, c := range []net.Conn{plain, secure} {
		text := "text of " + strings.TrimPrefix(fmt.Sprintf("%T", c), "*")
		go io.WriteString(c, text)
		got, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(text))
		if _, err := io.ReadFull(got, b); err != nil || string(b) != text {
			t.Errorf("got %q, %v", b, err)
		}
		got.Close()
	}
}
