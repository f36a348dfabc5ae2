// Package diagnose finds out why a request to a member got no answer.
//
// In: the error of a request, the endpoints it was sent to, and how the client connects.
// Out: a line of text for each endpoint.
//
// Always true: it writes nothing to a member, and is done after a bounded time.
package diagnose

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Timeout bounds the time that the diagnosis adds to a failed command.
const Timeout = time.Second

// Client is how requests are sent to the endpoints.
type Client struct {
	TLS         *tls.Config // nil without TLS
	Certificate bool        // the client presents a certificate
	Limit       string      // how long a request may take, in words
}

// Notes returns, one line for each endpoint, why a request got no answer. It is empty if
// err is a server's answer.
//
// The client only reports a timeout, so each endpoint is dialled once more to find the
// cause.
func (c Client) Notes(err error, endpoints []string) []string {
	if !noAnswer(err) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	notes := make([]string, len(endpoints))
	var wg sync.WaitGroup
	for i, ep := range endpoints {
		wg.Go(func() {
			notes[i] = "endpoint " + ep + ": " + c.explain(probe(ctx, ep, c.TLS), ep, ranOut(err))
		})
	}
	wg.Wait()
	return notes
}

// Ails returns what is wrong with an endpoint, empty if it answers.
func (c Client) Ails(ctx context.Context, endpoint string) string {
	f := probe(ctx, endpoint, c.TLS)
	if f.answers() {
		return ""
	}
	return c.explain(f, endpoint, false)
}

// explain returns the result of probing an endpoint, in words.
func (c Client) explain(f finding, endpoint string, ranOut bool) string {
	_, _, useTLS := dialTarget(endpoint, c.TLS != nil)
	return f.explain(ranOut, c.Limit, useTLS, c.Certificate)
}

// noAnswer reports whether err is the client's or the network's, and not a member's.
func noAnswer(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	// Not status.FromError: its message of a wrapped error begins with the wrapping.
	var rpc interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &rpc) {
		return false
	}
	st := rpc.GRPCStatus()
	if strings.HasPrefix(st.Message(), "etcdserver: ") {
		return false
	}
	return st.Code() == codes.DeadlineExceeded || st.Code() == codes.Unavailable
}

// ranOut reports whether err is a timeout.
func ranOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}

// answers reports whether a member has answered, without reporting a problem.
func (f finding) answers() bool { return f == finding{} }

// explain puts the finding of a probe into words. ranOut says that the request timed out
// after limit; certificate, that the client presented one.
func (f finding) explain(ranOut bool, limit string, useTLS, certificate bool) string {
	switch {
	case f.err != nil && f.tls && outOfTime(f.err):
		return "accepts connections, but does not answer the TLS handshake" + silence
	case f.err != nil && f.tls:
		var plain tls.RecordHeaderError
		if errors.Is(f.err, io.EOF) || errors.As(f.err, &plain) {
			return fmt.Sprintf("connects, but TLS fails: %v (a server without TLS needs an http:// endpoint)", f.err)
		}
		return fmt.Sprintf("connects, but TLS fails: %v%s", f.err, whatToCheck(f.err, certificate))
	case f.err != nil:
		return f.err.Error() + whatToCheck(f.err, certificate)
	case f.peer:
		return "is a peer URL (clients use the member's --listen-client-urls, by default port 2379)"
	case f.hangup && !useTLS:
		return "hangs up on requests without TLS (a server that expects TLS needs an https:// endpoint)"
	case f.hangup:
		return "accepts TLS connections, but hangs up on requests (is it etcd that listens there?)"
	case f.silent:
		return "accepts connections, but does not answer" + silence
	case f.ill != "":
		return fmt.Sprintf("is up, but reports that it is not healthy: %s (see %q)", f.ill, "etcdctl endpoint status --cluster -w table")
	case ranOut:
		return fmt.Sprintf("answers other requests; this one takes longer than %s", limit)
	default:
		return "answers now (it may have been unreachable for a moment: try again)"
	}
}

// silence is why an endpoint that accepts connections does not answer. A member opens its
// port when it starts, and serves when the cluster has a leader.
const silence = " (the member may be waiting for other members: it answers when more than half of them run and reach each other; or it hangs or is overloaded; see its log)"

// outOfTime reports whether err is that of a deadline.
func outOfTime(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

// whatToCheck returns the usual cause of a connection error, in parentheses; empty if there
// is no single one.
func whatToCheck(err error, certificate bool) string {
	var (
		noName    *net.DNSError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		op        *net.OpError
	)
	switch {
	case errors.As(err, &noName):
		return " (check the name in --endpoints)"
	case errors.Is(err, syscall.ECONNREFUSED):
		return " (nothing listens there: is etcd running, and are --endpoints and its --listen-client-urls the same?)"
	case errors.Is(err, os.ErrNotExist):
		return " (there is no such socket: is etcd running?)"
	case errors.As(err, &authority):
		return " (give the CA that signed the server's certificate with --cacert)"
	case errors.As(err, &host):
		return " (use a name or an address that the server's certificate has)"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return " (check the dates of the server's certificate and this machine's clock)"
	case errors.As(err, &invalid):
		return " (the server's certificate is not valid for servers, or its CA may not sign it)"
	case errors.As(err, &op) && op.Op == "remote error":
		return alertToCheck(op.Err.Error(), certificate)
	case outOfTime(err):
		return " (no answer: check the address, the network and its firewalls)"
	}
	return ""
}

// alertToCheck is whatToCheck for a TLS alert about the client, sent by the server.
// crypto/tls exposes only the text of such an alert.
func alertToCheck(alert string, certificate bool) string {
	text := strings.TrimPrefix(alert, "tls: ")
	switch {
	case strings.Contains(text, "certificate") && !certificate:
		return " (the server wants a certificate of this client: give it with --cert and --key)"
	case text == "expired certificate":
		return " (the certificate in --cert has expired, or is not valid yet by the server's clock)"
	case text == "unknown certificate authority":
		return " (the server does not trust the CA that signed the certificate in --cert: its --trusted-ca-file has others)"
	case text == "revoked certificate":
		return " (the certificate in --cert has been revoked)"
	case strings.Contains(text, "certificate"):
		return " (the server refuses the certificate in --cert: it may be revoked, not valid for clients, or have a name that the server does not allow)"
	case text == "handshake failure" && !certificate:
		return " (the server may want a certificate of this client, --cert and --key, or allow other cipher suites only)"
	case text == "protocol version not supported", text == "handshake failure":
		return " (the server allows other TLS versions or cipher suites only: see its --tls-min-version, --tls-max-version and --cipher-suites)"
	}
	return ""
}

// dialTarget parses an endpoint as the client does. withTLS: the client has a TLS
// configuration, which applies to an endpoint without a scheme.
func dialTarget(endpoint string, withTLS bool) (network, addr string, useTLS bool) {
	for _, p := range []struct {
		prefix string
		tls    bool
	}{{"unix://", withTLS}, {"unixs://", true}, {"unix:", withTLS}, {"unixs:", true}} {
		if path, ok := strings.CutPrefix(endpoint, p.prefix); ok {
			return "unix", path, p.tls
		}
	}
	if strings.Contains(endpoint, "://") {
		if u, err := url.Parse(endpoint); err == nil {
			return "tcp", u.Host, u.Scheme == "https"
		}
	}
	return "tcp", endpoint, withTLS
}
