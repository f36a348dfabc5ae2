package transport

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"time"
)

// idleTimeout is a little below the time after which etcd closes an idle
// connection, so that a request does not meet one that is just being closed.
const idleTimeout = readTimeout - 500*time.Millisecond

// newStreamClient returns the client that opens streams: each read and each
// write has its own deadline, and a connection is never used twice.
func newStreamClient(tc *tls.Config, dialTimeout time.Duration) *http.Client {
	d := dialer(dialTimeout)
	rt := roundTripper(tc)
	rt.MaxIdleConnsPerHost = -1
	rt.ReadBufferSize = 32 << 10
	return client(rt, func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &deadlineConn{c}, nil
	})
}

// newRequestClient returns the client for POST and for questions: a request may
// take its time, and connections are kept.
func newRequestClient(tc *tls.Config, dialTimeout time.Duration) *http.Client {
	rt := roundTripper(tc)
	rt.MaxIdleConnsPerHost = 1024
	rt.WriteBufferSize = 64 << 10
	rt.IdleConnTimeout = idleTimeout
	return client(rt, dialer(dialTimeout).DialContext)
}

func dialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
}

func roundTripper(tc *tls.Config) *http.Transport {
	if tc != nil {
		tc = tc.Clone()
	}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: 10 * time.Second,
		TLSClientConfig:     tc,
		DisableCompression:  true, // what is sent is not worth it, and streams must not wait
		// The peer port speaks HTTP/1.1 only.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

func client(rt *http.Transport, dial dialFunc) *http.Client {
	unix := rt.Clone()
	rt.DialContext = dial
	unix.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, "unix", addr) }
	unix.Proxy = nil
	return &http.Client{
		Transport: &bySocket{tcp: rt, unix: unix},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a peer is asked itself or not at all
		},
	}
}

// bySocket sends requests to unix and unixs URLs over the Unix socket that is
// named like the host of the URL, all others over TCP.
type bySocket struct{ tcp, unix *http.Transport }

func (b *bySocket) RoundTrip(req *http.Request) (*http.Response, error) {
	scheme, ok := strings.CutPrefix(req.URL.Scheme, "unix")
	if !ok {
		return b.tcp.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	req.URL.Scheme = "http" + scheme
	return b.unix.RoundTrip(req)
}

func (b *bySocket) CloseIdleConnections() {
	b.tcp.CloseIdleConnections()
	b.unix.CloseIdleConnections()
}

// deadlineConn gives each read and each write the time that the protocol allows
// for silence.
type deadlineConn struct{ net.Conn }

func (c *deadlineConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *deadlineConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
