package transport

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/clock"
)

// idleTimeout is slightly below the time after which etcd closes an idle
// connection, so that a request does not use one that is just being closed.
const idleTimeout = readTimeout - 500*time.Millisecond

// TLSSource returns the configuration for new connections. It returns the same
// pointer as long as nothing has changed. It is called for each request,
// concurrently.
type TLSSource func() *tls.Config

// newStreamClient returns the client that opens streams: each read and each
// write has its own deadline, and connections are never reused.
func newStreamClient(source TLSSource, d *net.Dialer, read, write time.Duration) *http.Client {
	rt := roundTripper()
	rt.MaxIdleConnsPerHost = -1
	rt.ReadBufferSize = 32 << 10
	return client(rt, source, func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &deadlineConn{c, read, write}, nil
	})
}

// newRequestClient returns the client for POST and for queries: requests have
// no deadline of the connection, and connections are reused.
func newRequestClient(source TLSSource, d *net.Dialer) *http.Client {
	rt := roundTripper()
	rt.MaxIdleConnsPerHost = 1024
	rt.WriteBufferSize = 64 << 10
	rt.IdleConnTimeout = idleTimeout
	return client(rt, source, d.DialContext)
}

// RequestClient returns the client for queries to peer URLs, also for members that
// have not started yet; source may be nil.
func RequestClient(source TLSSource, dialTimeout time.Duration) *http.Client {
	return newRequestClient(source, dialer(dialTimeout, nil))
}

// dialer returns a dialer that binds connections to local, unless that is
// nil.
func dialer(timeout time.Duration, local net.IP) *net.Dialer {
	d := &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
	if local != nil {
		d.LocalAddr = &net.TCPAddr{IP: local}
	}
	return d
}

func roundTripper() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: 10 * time.Second,
		DisableCompression:  true, // the data compresses badly, and streams must not be delayed
		// The peer port supports HTTP/1.1 only.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// client returns a client that opens connections with dial, and for https and
// unixs URLs with the TLS configuration that source returns at that time.
func client(rt *http.Transport, source TLSSource, dial dialFunc) *http.Client {
	unix := rt.Clone()
	rt.DialContext = dial
	unix.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, "unix", addr) }
	unix.Proxy = nil
	b := &bySocket{source: source}
	b.now.Store(&sockets{tcp: rt, unix: unix})
	return &http.Client{
		Transport: b,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // never follow a peer's redirect
		},
	}
}

// bySocket sends requests for unix and unixs URLs over the Unix socket named by
// the host of the URL, all others over TCP.
//
// A request that finds a changed TLS configuration replaces the transports, so
// that connections opened with the old one are not reused.
type bySocket struct {
	source TLSSource // nil: Go's defaults
	now    atomic.Pointer[sockets]
	mu     sync.Mutex // serializes replacing now
}

type sockets struct {
	config    *tls.Config // what source returned for these transports
	tcp, unix *http.Transport
}

func (s *sockets) with(config *tls.Config) *sockets {
	n := &sockets{config: config, tcp: s.tcp.Clone(), unix: s.unix.Clone()}
	n.tcp.TLSClientConfig, n.unix.TLSClientConfig = config.Clone(), config.Clone()
	return n
}

func (b *bySocket) current() *sockets {
	now := b.now.Load()
	if b.source == nil {
		return now
	}
	config := b.source()
	if now.config == config {
		return now
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.now.Load()
	if old.config == config {
		return old
	}
	b.now.Store(old.with(config))
	old.closeIdle()
	return b.now.Load()
}

func (s *sockets) closeIdle() {
	s.tcp.CloseIdleConnections()
	s.unix.CloseIdleConnections()
}

func (b *bySocket) RoundTrip(req *http.Request) (*http.Response, error) {
	s := b.current()
	scheme, ok := strings.CutPrefix(req.URL.Scheme, "unix")
	if !ok {
		return s.tcp.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	req.URL.Scheme = "http" + scheme
	return s.unix.RoundTrip(req)
}

func (b *bySocket) CloseIdleConnections() { b.now.Load().closeIdle() }

// deadlineConn gives each read and each write a deadline of its own: the
// silence that the protocol allows.
type deadlineConn struct {
	net.Conn
	read, write time.Duration
}

func (c *deadlineConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(clock.Now().Add(c.read)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *deadlineConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(clock.Now().Add(c.write)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
