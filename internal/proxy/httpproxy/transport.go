package httpproxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"quorate/internal/clock"
)

// Times are the values of the flags about times of a proxy, in milliseconds.
type Times struct {
	FailureWait uint // how long a member that could not be reached is skipped
	Refresh     uint // interval of requests for the member list

	// Timeouts of requests to members; 0 is no limit.
	Dial, Write, Read uint
}

// DefaultTimes returns the times without any flag.
func DefaultTimes() Times {
	return Times{FailureWait: 5000, Refresh: 30000, Dial: 1000, Write: 5000}
}

// idleConns is the number of idle connections kept to each member.
const idleConns = 128

// Options returns the parts of the options of a proxy, and of its connections, that the
// times determine.
func (t Times) Options() (Options, TransportOptions) {
	ms := func(n uint) time.Duration { return time.Duration(n) * time.Millisecond }
	return Options{FailureWait: ms(t.FailureWait), Refresh: ms(t.Refresh)},
		TransportOptions{DialTimeout: ms(t.Dial), ReadTimeout: ms(t.Read), WriteTimeout: ms(t.Write), MaxIdlePerEndpoint: idleConns}
}

// TransportOptions say how to reach members. A time of 0 is no limit.
type TransportOptions struct {
	TLS                 *tls.Config // for https endpoints; nil for Go's defaults
	DialTimeout         time.Duration
	ReadTimeout         time.Duration // without receiving a byte of an answer: a watch may be silent for long
	WriteTimeout        time.Duration // without sending a byte of a request
	MaxIdlePerEndpoint  int
	MaxConnsPerEndpoint int // beyond it requests wait; 0 for no limit
}

// NewTransport returns a transport for Options.Transport: HTTP/1.1, and nothing added to
// what it forwards.
func NewTransport(o TransportOptions) *http.Transport {
	d := &net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		TLSClientConfig: o.TLS,
		// An empty map disables HTTP/2.
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

// impatientConn sets a deadline for every single read and write.
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
