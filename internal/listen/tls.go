package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"

	"go.uber.org/zap"
)

// TLS configures the handshakes on a port.
type TLS struct {
	// Config is the configuration of the handshake; GetConfigForClient may replace it per
	// client.
	Config *tls.Config
	// Check, if not nil, may reject a connection after the handshake, based on its remote
	// address. ctx is done when the time for the handshake is over.
	Check func(ctx context.Context, state tls.ConnectionState, remote net.Addr) error
	// Refused, if not nil, is called for connections that fail. It must not block.
	Refused func(conn *tls.Conn, err error)
}

func (t *TLS) refused(conn *tls.Conn, err error) {
	if t.Refused != nil {
		t.Refused(conn, err)
	}
}

// LogRefused returns a Refused that logs the reason; at debug level for connections that
// were merely closed.
func LogRefused(lg *zap.Logger, text string) func(*tls.Conn, error) {
	return func(conn *tls.Conn, err error) {
		log := lg.Warn
		if errors.Is(err, io.EOF) {
			log = lg.Debug
		}
		state := conn.ConnectionState()
		fields := []zap.Field{zap.String("remote-addr", conn.RemoteAddr().String()), zap.String("server-name", state.ServerName)}
		if len(state.PeerCertificates) > 0 {
			cert := state.PeerCertificates[0]
			fields = append(fields, zap.Stringers("ip-addresses", cert.IPAddresses), zap.Strings("dns-names", cert.DNSNames))
		}
		log(text, append(fields, zap.Error(err))...)
	}
}

// listening returns t with a configuration that records what clients offer.
func (t *TLS) listening() *TLS {
	c := t.Config.Clone()
	next := c.GetConfigForClient
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if conn, ok := hello.Conn.(*helloConn); ok {
			conn.offersHTTP1 = slices.Contains(hello.SupportedProtos, "http/1.1")
		}
		if next == nil {
			return nil, nil
		}
		return next(hello)
	}
	return &TLS{Config: c, Check: t.Check, Refused: t.Refused}
}

// helloConn is the connection underneath TLS.
type helloConn struct {
	sniffedConn
	offersHTTP1 bool // set during the handshake

	mu        sync.Mutex // serializes writes; guards the following fields
	gathering bool
	gathered  []byte
}

// Gather makes writes accumulate in buf until Send writes them at once. TLS writes each
// record, of at most 16 KiB, with a system call of its own.
func (c *helloConn) Gather(buf []byte) {
	c.mu.Lock()
	c.gathering, c.gathered = true, buf[:0]
	c.mu.Unlock()
}

// Send ends Gather. It returns the buffer, which may have grown.
func (c *helloConn) Send() (buf []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf = c.gathered
	c.gathering, c.gathered = false, nil
	if len(buf) > 0 {
		_, err = c.Conn.Write(buf)
	}
	return buf, err
}

func (c *helloConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gathering {
		c.gathered = append(c.gathered, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// oneSide is the listener of a Mux with one side.
type oneSide struct {
	net.Listener // the side
	mux          *Mux
}

// Accept returns the error of root if root has failed.
func (l oneSide) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		return conn, nil
	}
	l.mux.mu.Lock()
	defer l.mux.mu.Unlock()
	if l.mux.why != nil {
		err = l.mux.why
	}
	return nil, err
}

func (l oneSide) Close() error { return l.mux.Close() }

// NewListener owns root. It returns a listener for connections that have completed the TLS
// handshake, as *tls.Conn, or that need none. It starts accepting from root immediately.
func NewListener(root net.Listener, a Accepts) net.Listener {
	if a.TLS == nil {
		return root
	}
	m := newMux(root, a)
	m.http = newSide(root.Addr(), m.done)
	m.grpc = m.http
	go m.Serve() // Accept returns its error
	return oneSide{m.http, m}
}
