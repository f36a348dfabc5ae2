package ctl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
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
		return err.Error()
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
		return fmt.Sprintf("connects, but TLS fails: %v", err)
	}
	return "accepts TLS connections, but gave no answer in time"
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
