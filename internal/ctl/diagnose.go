package ctl

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

// probeTimeout bounds what finding the reason adds to a command that failed.
const probeTimeout = time.Second

// diagnose says, a line for each endpoint, why a request got no answer. It is
// empty when err is the answer of a server.
//
// The client reports only that time ran out, so each endpoint is dialled once
// more to see what is in the way.
func (s *session) diagnose(err error, endpoints []string) []string {
	if !noAnswer(err) {
		return nil
	}
	cfg, cerr := s.config(endpoints...)
	if cerr != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	notes := make([]string, len(endpoints))
	var wg sync.WaitGroup
	for i, ep := range endpoints {
		wg.Go(func() { notes[i] = "endpoint " + ep + ": " + probe(ctx, ep, cfg.TLS) })
	}
	wg.Wait()
	return notes
}

// noAnswer: err is the client's, not a server's.
func noAnswer(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	c := status.Code(err)
	return c == codes.DeadlineExceeded || c == codes.Unavailable
}

// probe connects as the client would, and says how far it came.
func probe(ctx context.Context, endpoint string, tlsCfg *tls.Config) string {
	network, addr, useTLS := dialTarget(endpoint, tlsCfg != nil)
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return err.Error() + whatToCheck(err)
	}
	defer conn.Close()
	if !useTLS {
		return "accepts connections, but gave no answer in time (a server that expects TLS needs an https:// endpoint)"
	}
	if tlsCfg == nil {
		tlsCfg = &tls.Config{}
	}
	tlsCfg = tlsCfg.Clone()
	tlsCfg.NextProtos = []string{"h2"}
	if tlsCfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		tlsCfg.ServerName = host
	}
	if err := tls.Client(conn, tlsCfg).HandshakeContext(ctx); err != nil {
		var plain tls.RecordHeaderError
		if errors.Is(err, io.EOF) || errors.As(err, &plain) {
			return fmt.Sprintf("connects, but TLS fails: %v (a server without TLS needs an http:// endpoint)", err)
		}
		return fmt.Sprintf("connects, but TLS fails: %v%s", err, whatToCheck(err))
	}
	return "accepts TLS connections, but gave no answer in time"
}

// whatToCheck is what usually is behind an error of a connection, in brackets;
// empty when that is anybody's guess.
func whatToCheck(err error) string {
	var (
		noName    *net.DNSError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		alert     tls.AlertError
	)
	switch {
	case errors.As(err, &noName):
		return " (check the name in --endpoints)"
	case errors.Is(err, syscall.ECONNREFUSED):
		return " (nobody listens there: is etcd running, and are --endpoints and its --listen-client-urls the same?)"
	case errors.Is(err, os.ErrNotExist):
		return " (there is no such socket: is etcd running?)"
	case errors.As(err, &authority):
		return " (give the CA that signed the server's certificate with --cacert)"
	case errors.As(err, &host):
		return " (use a name or an address that the server's certificate has)"
	case errors.As(err, &invalid):
		return " (check the dates of the server's certificate and this machine's clock)"
	case errors.As(err, &alert):
		return " (the server refuses this client: it may want a certificate, --cert and --key)"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return " (no answer at all: check the address, the network and its firewalls)"
	}
	return ""
}

// dialTarget reads an endpoint as the client does. withTLS: the client has a
// TLS configuration, which an endpoint without a scheme follows.
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
