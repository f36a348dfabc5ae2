package diagnose

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
)

var quiet = log.New(io.Discard, "", 0)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func sign(t *testing.T, by *authority, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by == nil {
		by = &authority{template, key}
	}
	template.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func newAuthority(t *testing.T, name string) *authority {
	cert, key := sign(t, nil, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign})
	return &authority{cert, key}
}

func (a *authority) issue(t *testing.T, expires time.Time) *tls.Certificate {
	cert, key := sign(t, a, &x509.Certificate{Subject: pkix.Name{CommonName: "x"}, NotAfter: expires, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}})
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func pool(a *authority) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// In TLS 1.3 the server's verdict on the client's certificate comes after the handshake.
func TestProbeVerdict(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	later := time.Now().Add(time.Hour)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = quiet
		s.TLS = &tls.Config{MaxVersion: version, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(ca), Certificates: []tls.Certificate{*ca.issue(t, later)}}
		s.StartTLS()
		t.Cleanup(s.Close)
		for _, c := range []struct {
			name string
			cert *tls.Certificate
			want string
		}{
			{"none", nil, "--cert and --key"},
			{"other authority", other.issue(t, later), "does not trust the CA"},
			{"expired", ca.issue(t, time.Now().Add(-time.Hour)), "has expired"},
			{"right", ca.issue(t, later), "takes longer than the 5s of --command-timeout"},
		} {
			cfg := &tls.Config{RootCAs: pool(ca)}
			if c.cert != nil {
				// Go leaves out client certificates if the server does not name their CA.
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
			}
			got := probe(t.Context(), s.URL, cfg).explain(true, "the 5s of --command-timeout", true, c.cert != nil)
			if !strings.Contains(got, c.want) {
				t.Errorf("TLS version %x, certificate: %s: %q, want something with %q", version, c.name, got, c.want)
			}
		}
	}
}

// serveGRPC serves gRPC without anything else, and returns its address.
func serveGRPC(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	t.Cleanup(s.Stop)
	go s.Serve(l)
	return l.Addr().String()
}

func TestProbe(t *testing.T) {
	web := func(answers map[string]string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			text, ok := answers[r.URL.Path]
			if !ok {
				http.NotFound(w, r)
				return
			}
			fmt.Fprint(w, text)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = quiet
	secure.StartTLS()
	t.Cleanup(secure.Close)
	listen := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go serve(c)
			}
		}()
		return l.Addr().String()
	}
	hold := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	rpc := serveGRPC(t)
	for _, c := range []struct{ name, endpoint, want string }{
		{"slow call", web(nil), "takes longer than the 5s"},
		{"gRPC alone", "http://" + rpc, "takes longer than the 5s"},
		{"no leader", web(map[string]string{"/health": `{"health":"false","reason":"RAFT NO LEADER"}`}), "not healthy: RAFT NO LEADER"},
		{"healthy", web(map[string]string{"/health": `{"health":"true","reason":""}`}), "takes longer than the 5s"},
		{"port of peers", web(map[string]string{"/members": `[{"id":1}]`}), "is a peer URL"},
		{"server with TLS", "http://" + secure.Listener.Addr().String(), "needs an https:// endpoint"},
		{"hangs up", listen(func(c net.Conn) { c.Close() }), "needs an https:// endpoint"},
		{"server without TLS", "https://" + rpc, "needs an http:// endpoint"},
		{"silence", listen(hold), "accepts connections, but does not answer (the member may be waiting for other members"},
		{"silence with TLS", "https://" + listen(hold), "does not answer the TLS handshake (the member may be waiting for other members"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			limit := time.Minute
			if strings.Contains(c.name, "silence") {
				limit = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			useTLS := strings.HasPrefix(c.endpoint, "https://")
			if got := probe(ctx, c.endpoint, nil).explain(true, "the 5s of --command-timeout", useTLS, false); !strings.Contains(got, c.want) {
				t.Errorf("%q, want something with %q", got, c.want)
			}
		})
	}
}
