package httpproxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"quorate/internal/clock"
)

// TransportOptions say how members are reached. A time of 0 is no limit.
type TransportOptions struct {
	TLS                 *tls.Config // for https endpoints; nil for Go's defaults
	DialTimeout         time.Duration
	ReadTimeout         time.Duration // without a byte of an answer: a watch may be silent for long
	WriteTimeout        time.Duration // without a byte of a request being taken
	MaxIdlePerEndpoint  int
	MaxConnsPerEndpoint int // beyond it requests wait; 0 for no limit
}

// NewTransport returns what Options.Transport needs: HTTP/1.1 and nothing added
// to what passes.
func NewTransport(o TransportOptions) *http.Transport {
	d := &net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		TLSClientConfig: o.TLS,
		// An empty map turns HTTP/2 off.
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		DisableCompression:  true,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: o.MaxIdlePerEndpoint, MaxConnsPerHost: o.MaxConnsPerEndpoint,
		IdleConnTimeout: time.Minute,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err != nil || o.ReadTimeout == 0 && o.WriteTimeout == 0 {
				return c, err
			}
			return &impatientConn{c, o.ReadTimeout, o.WriteTimeout}, nil
		},
	}
}

// impatientConn gives every read and write its own time.
type impatientConn struct {
	net.Conn
	read, write time.Duration
}

func (c *impatientConn) Read(b []byte) (int, error) {
	if c.read > 0 {
		if err := c.SetReadDeadline(clock.Now().Add(c.read)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(b)
}

func (c *impatientConn) Write(b []byte) (int, error) {
	if c.write > 0 {
		if err := c.SetWriteDeadline(clock.Now().Add(c.write)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}
