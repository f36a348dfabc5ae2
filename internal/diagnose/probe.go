package diagnose

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"quorate/internal/clock"
	"quorate/internal/transport/peerapi"

	"golang.org/x/net/http2"
)

// maxProbed bounds the bytes read from an answer.
const maxProbed = 64 << 10

// finding is how far a client gets with an endpoint.
type finding struct {
	err    error  // the attempt failed here, connecting or in the TLS handshake
	tls    bool   // err is from TLS
	hangup bool   // the endpoint closed the connection on a request
	silent bool   // it accepted a request and did not answer
	peer   bool   // it is a peer URL
	ill    string // what the member reports as wrong, empty if nothing
}

// probe connects as the client would, makes a request that every member answers at once,
// and returns how far it got.
func probe(ctx context.Context, endpoint string, tlsCfg *tls.Config) finding {
	network, addr, useTLS := dialTarget(endpoint, tlsCfg != nil)
	// A port for gRPC alone closes HTTP/1.1 connections, and etcd's peer port accepts
	// HTTP/2 in TLS and then closes such connections. So both are tried, the client's
	// first.
	protocols := []string{"http/1.1", http2.NextProtoTLS}
	if useTLS {
		protocols = []string{http2.NextProtoTLS, "http/1.1"}
	}
	f := speak(ctx, network, addr, useTLS, tlsCfg, protocols)
	if f.hangup {
		if again := speak(ctx, network, addr, useTLS, tlsCfg, protocols[1:]); again.err == nil && !again.hangup {
			return again
		}
	}
	return f
}

// speak connects and calls visit with the first of protocols or, with TLS, with the
// protocol that the server chooses.
func speak(ctx context.Context, network, addr string, useTLS bool, tlsCfg *tls.Config, protocols []string) finding {
	conn, err := dial(ctx, network, addr)
	if err != nil {
		return finding{err: err}
	}
	defer conn.Close()
	protocol := protocols[0]
	if useTLS {
		if conn, protocol, err = conn.handshake(ctx, addr, tlsCfg, protocols); err != nil {
			return finding{err: err, tls: true}
		}
	}
	if protocol == http2.NextProtoTLS {
		return visit(ctx, conn.http2())
	}
	return visit(ctx, conn.http1())
}

// line is a connection of which some bytes may already have been read.
type line struct {
	net.Conn
	r *bufio.Reader
}

func newLine(c net.Conn) *line { return &line{c, bufio.NewReader(c)} }

func (l *line) Read(b []byte) (int, error) { return l.r.Read(b) }

// dial opens a connection that ctx cancels.
func dial(ctx context.Context, network, addr string) (*line, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		conn.Close()
		return nil, err
	}
	return newLine(conn), nil
}

// handshake performs the TLS handshake, and waits for the server's verdict on the client's
// certificate: in TLS 1.3 the client is done before the server has seen it. It returns the
// negotiated one of protocols, if any.
func (l *line) handshake(ctx context.Context, addr string, cfg *tls.Config, protocols []string) (secure *line, protocol string, err error) {
	if cfg == nil {
		cfg = &tls.Config{}
	}
	cfg = cfg.Clone()
	cfg.NextProtos = protocols
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		cfg.ServerName = host
	}
	c := tls.Client(l, cfg)
	start := clock.Now()
	if err := c.HandshakeContext(ctx); err != nil {
		return l, "", err
	}
	secure = newLine(c)
	state := c.ConnectionState()
	if state.Version >= tls.VersionTLS13 {
		// A rejection arrives as fast as the answers in the handshake did. If none arrives,
		// that is a good sign; writing meanwhile could break the connection before the
		// rejection is read.
		verdict := clock.Now().Add(2*clock.Since(start) + 100*time.Millisecond)
		deadline, _ := ctx.Deadline()
		if !deadline.IsZero() && deadline.Before(verdict) {
			verdict = deadline
		}
		_ = c.SetReadDeadline(verdict) // a failure here shows again below
		if _, err := secure.r.Peek(1); err != nil && !isTimeout(err) {
			return l, "", err
		}
		_ = c.SetReadDeadline(deadline)
	}
	return secure, state.NegotiatedProtocol, nil
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// asker sends a GET request and returns the answer.
type asker func(ctx context.Context, path string) (status int, body []byte, err error)

func (l *line) http1() asker {
	return func(ctx context.Context, path string) (int, []byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://etcd"+path, nil)
		if err != nil {
			return 0, nil, err
		}
		if err := req.Write(l); err != nil {
			return 0, nil, err
		}
		return read(http.ReadResponse(l.r, req))
	}
}

func (l *line) http2() asker {
	//lint:ignore SA1019 that of net/http dials by itself; here the connection is there
	c, err := new(http2.Transport).NewClientConn(l)
	return func(ctx context.Context, path string) (int, []byte, error) {
		if err != nil {
			return 0, nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://etcd"+path, nil)
		if err != nil {
			return 0, nil, err
		}
		return read(c.RoundTrip(req))
	}
}

func read(resp *http.Response, err error) (int, []byte, error) {
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbed))
	return resp.StatusCode, body, err
}

// visit makes two requests: one that only peers answer, and one that is for clients.
func visit(ctx context.Context, ask asker) (f finding) {
	status, body, err := ask(ctx, peerapi.PathMembers)
	var members []json.RawMessage
	switch {
	case err != nil && (isTimeout(err) || ctx.Err() != nil):
		return finding{silent: true}
	case err != nil, status == http.StatusBadRequest && strings.Contains(string(body), "HTTPS server"):
		return finding{hangup: true}
	case status == http.StatusOK && json.Unmarshal(body, &members) == nil:
		return finding{peer: true}
	}
	var health struct{ Health, Reason string }
	_, body, err = ask(ctx, "/health")
	if err == nil && json.Unmarshal(body, &health) == nil && health.Health == "false" {
		f.ill = health.Reason
		if f.ill == "" {
			f.ill = "no reason is given"
		}
	}
	return f
}
