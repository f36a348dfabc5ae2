package certs

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// OpenMember generates what was asked for, reads what a URL uses, and warns about what no
// URL uses.
func TestOpenMember(t *testing.T) {
	urls := func(s string) []url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []url.URL{*u}
	}
	missing := Files{CertFile: "missing.pem", KeyFile: "missing.key"}
	for _, c := range []struct {
		name     string
		o        MemberOptions
		peer     bool
		client   bool
		message  string // of the StartError
		cause    error
		warnings []string
	}{
		{name: "nothing", o: MemberOptions{PeerURLs: urls("http://127.0.0.1:1"), ClientURLs: urls("unix://a:1")}},
		{name: "generated", o: MemberOptions{Peer: Files{AutoTLS: true}, Client: Files{AutoTLS: true, ClientCertAuth: true}, Validity: 1,
			PeerURLs: urls("https://127.0.0.1:1"), ClientURLs: urls("https://127.0.0.1:2")}, peer: true, client: true,
			warnings: []string{"automatically generate certificates", "automatically generate certificates",
				"generated certificates replace all other TLS settings: no client certificate is requested"}},
		{name: "generated for no time", o: MemberOptions{Peer: Files{AutoTLS: true}, PeerURLs: urls("https://127.0.0.1:1")},
			message: "failed to get peer self-signed certs", cause: ErrNoValidity},
		{name: "files that no URL uses", o: MemberOptions{Client: missing, PeerURLs: urls("http://127.0.0.1:1"), ClientURLs: urls("http://127.0.0.1:2")},
			warnings: []string{"scheme is http or unix while key and cert files are present; ignoring key and cert files"}},
		{name: "missing files", o: MemberOptions{Client: missing, ClientURLs: urls("unixs://a:1")}, message: "listener failed", cause: os.ErrNotExist},
		{name: "missing files for metrics", o: MemberOptions{Client: missing, ClientURLs: urls("http://127.0.0.1:2"), Metrics: urls("https://127.0.0.1:3")}, cause: os.ErrNotExist,
			warnings: []string{"scheme is http or unix while key and cert files are present; ignoring key and cert files"}},
		{name: "peers by HTTP", o: MemberOptions{Peer: Files{AutoTLS: true, CertFile: "missing.pem", KeyFile: "missing.key"}, PeerURLs: urls("http://127.0.0.1:1")}, cause: os.ErrNotExist,
			warnings: []string{"ignoring peer auto TLS since certs given"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			core, logs := observer.New(zapcore.WarnLevel)
			c.o.Logger, c.o.Generated = zap.New(core), t.TempDir()
			m, err := OpenMember(c.o)
			var start *StartError
			if !errors.Is(err, c.cause) || errors.As(err, &start) != (c.message != "") || start != nil && start.Message != c.message {
				t.Errorf("error %v, want %v with the message %q", err, c.cause, c.message)
			}
			if c.cause == nil && (m.Peer != nil) != c.peer || (m.Client != nil) != c.client {
				t.Errorf("stores of peers and clients: %v, %v", m.Peer != nil, m.Client != nil)
			}
			if (m.DialPeers() != nil) != (m.Peer != nil) || (m.DialClients() != nil) != (m.Client != nil) {
				t.Error("connections to others do not use the stores")
			}
			var got []string
			for _, e := range logs.All() {
				got = append(got, e.Message)
			}
			if len(got) != len(c.warnings) {
				t.Fatalf("warnings %q, want %q", got, c.warnings)
			}
			for i, w := range c.warnings {
				if got[i] != w {
					t.Errorf("warning %q, want %q", got[i], w)
				}
			}
			for _, kind := range []string{"peer", "client"} {
				_, err := os.Stat(filepath.Join(c.o.Generated, kind, "cert.pem"))
				if generated := err == nil; generated != (c.name == "generated") {
					t.Errorf("a certificate for %s was generated: %v", kind, generated)
				}
			}
		})
	}
}
