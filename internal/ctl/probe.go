package ctl

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

// maxProbed bounds what is read of an answer.
const maxProbed = 64 << 10

// finding is how far an endpoint lets a client come.
type finding struct {
	err    error  // it ended here, connecting or in the TLS handshake
	tls    bool   // err is TLS's
	hangup bool   // the endpoint hung up on a request
	silent bool   // it took a request and gave no answer
	peer   bool   // it is where members talk to each other
	ill    string // what the member says is wrong with it, empty if nothing
}

// probe connects as the client would, asks what any member answers at once, and
// says how far it came.
func probe(ctx context.Context, endpoint string, tlsCfg *tls.Config) finding {
	network, addr, useTLS := dialTarget(endpoint, tlsCfg != nil)
	// A port of gRPC alone hangs up on HTTP/1.1, and etcd's for peers agrees in TLS
	// on HTTP/2 and then hangs up on it. So both are tried, the client's first.
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

// speak connects and visits with the first of protocols, or, with TLS, with the
// one that the server chooses.
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

// line is a connection of which something may have been read ahead.
type line struct {
	net.Conn
	r *bufio.Reader
}

func newLine(c net.Conn) *line { return &line{c, bufio.NewReader(c)} }

func (l *line) Read(b []byte) (int, error) { return l.r.Read(b) }

// dial makes a connection on which everything ends with ctx.
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

// handshake goes through TLS's, and waits for what the server makes of the
// client's certificate: in TLS 1.3 the client is done before the server has seen it.
// The protocol is the one of protocols that was agreed on, if any was.
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
		// A refusal comes as fast as the answers in the handshake did. That none
		// comes is a good sign; writing meanwhile could make the connection fail
		// before the refusal is read.
		verdict := clock.Now().Add(2*clock.Since(start) + 100*time.Millisecond)
		deadline, _ := ctx.Deadline()
		if !deadline.IsZero() && deadline.Before(verdict) {
			verdict = deadline
		}
		_ = c.SetReadDeadline(verdict) // what fails here fails below
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

// visit asks two questions: the first is one of members to each other, the second
// is for everybody.
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
