package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"quorate/internal/certs/certstest"
)

// place is a directory with an authority and the pair of a server.
type place struct {
	t   *testing.T
	dir string
	ca  *certstest.CA
	now time.Time
	o   Options
	log *observer.ObservedLogs
}

func newPlace(t *testing.T) *place {
	p := &place{t: t, dir: t.TempDir(), ca: certstest.NewCA("ca"), now: time.Now()}
	p.put("ca.pem", p.ca.PEM)
	p.pair("server", certstest.Leaf{CN: "server"})
	core, log := observer.New(zap.InfoLevel)
	p.log = log
	p.o = Options{Files: Files{CertFile: p.path("server.pem"), KeyFile: p.path("server.key"), TrustedCAFile: p.path("ca.pem")},
		Logger: zap.New(core), Now: func() time.Time { return p.now }}
	return p
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

func (p *place) put(name string, content []byte) {
	p.t.Helper()
	if err := certstest.Write(p.path(name), content); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) pair(name string, l certstest.Leaf) certstest.Pair {
	p.t.Helper()
	pair := p.ca.Issue(l)
	if _, _, err := pair.WriteTo(p.dir, name); err != nil {
		p.t.Fatal(err)
	}
	return pair
}

func (p *place) open() *Store {
	p.t.Helper()
	s, err := Open(p.o)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// later advances the clock past the time after which files are checked again.
func (p *place) later() { p.now = p.now.Add(recheck) }

// clientConfig trusts ca and presents pair, if there is one.
func clientConfig(ca *certstest.CA, pair *certstest.Pair) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM)
	c := &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
	if pair != nil {
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			panic(err)
		}
		// Present it whatever authorities the server asks for.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return c
}

// handshake connects the two and returns the errors of both ends, and the server's
// connection state.
func handshake(t *testing.T, server, client *tls.Config) (cs tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // unlike a pipe, it has room for an alert both ways
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	limit := time.Now().Add(30 * time.Second)
	a.SetDeadline(limit)
	b.SetDeadline(limit)
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err != nil {
			a.Close() // after the alert
		}
		done <- err
	}()
	if clientErr = c.Handshake(); clientErr == nil {
		// With TLS 1.3 the client learns the server's verdict only now.
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	if clientErr != nil {
		b.Close()
	}
	serverErr = <-done
	return s.ConnectionState(), serverErr, clientErr
}

func TestServerRules(t *testing.T) {
	p := newPlace(t)
	other := certstest.NewCA("other")
	good := p.ca.Issue(certstest.Leaf{CN: "good", DNS: []string{"good.example"}})
	revoked := p.ca.Issue(certstest.Leaf{CN: "revoked"})
	foreign := other.Issue(certstest.Leaf{CN: "good"})
	expired := p.ca.Issue(certstest.Leaf{CN: "good", Expired: true})
	serverOnly := p.ca.Issue(certstest.Leaf{CN: "good", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	p.put("crl.der", p.ca.Revoke(revoked))
	p.put("crl.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: p.ca.Revoke(revoked)}))
	p.put("bad", []byte("text"))

	for _, tt := range []struct {
		name   string
		change func(o *Options)
		pair   *certstest.Pair
		want   string // in the server's error; empty: accepted
	}{
		{"good", nil, &good, ""},
		{"no certificate", nil, nil, "client didn't provide a certificate"},
		{"no certificate, none wanted", func(o *Options) { o.TrustedCAFile = "" }, nil, ""},
		{"no certificate, none wanted, rules", func(o *Options) { o.TrustedCAFile, o.AllowedCNs = "", []string{"x"} }, nil, ""},
		{"wanted without an authority", func(o *Options) { o.TrustedCAFile, o.ClientCertAuth = "", true }, &good, "unknown authority"},
		{"another authority", nil, &foreign, "unknown authority"},
		{"expired", nil, &expired, "expired"},
		{"not for clients", nil, &serverOnly, "incompatible key usage"},
		{"common name", func(o *Options) { o.AllowedCNs = []string{"x", "good"} }, &good, ""},
		{"other common name", func(o *Options) { o.AllowedCNs = []string{"x", "goo"} }, &good, "client certificate authentication failed"},
		{"hostname", func(o *Options) { o.AllowedHostnames = []string{"x.example", "good.example"} }, &good, ""},
		{"other hostname", func(o *Options) { o.AllowedHostnames = []string{"example"} }, &good, "client certificate authentication failed"},
		{"not revoked", func(o *Options) { o.CRLFile = p.path("crl.der") }, &good, ""},
		{"revoked", func(o *Options) { o.CRLFile = p.path("crl.der") }, &revoked, "revoked"},
		{"revoked, PEM", func(o *Options) { o.CRLFile = p.path("crl.pem") }, &revoked, "revoked"},
		{"list not there", func(o *Options) { o.CRLFile = p.path("none") }, &good, "no such file"},
		{"list damaged", func(o *Options) { o.CRLFile = p.path("bad") }, &good, "--client-crl-file=" + p.path("bad")},
		{"version", func(o *Options) { o.MinVersion = tls.VersionTLS13 }, &good, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := p.o
			if tt.change != nil {
				tt.change(&o)
			}
			s, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			_, serverErr, clientErr := handshake(t, s.Server(), clientConfig(p.ca, tt.pair))
			switch {
			case tt.want == "":
				if serverErr != nil || clientErr != nil {
					t.Errorf("refused: server: %v; client: %v", serverErr, clientErr)
				}
			case serverErr == nil || clientErr == nil || !strings.Contains(serverErr.Error(), tt.want):
				t.Errorf("server: %v; client: %v; want %q", serverErr, clientErr, tt.want)
			}
		})
	}
}

// The rules apply to servers that a member dials, too.
func TestClientRules(t *testing.T) {
	p := newPlace(t)
	serverPair := p.pair("server", certstest.Leaf{CN: "server"})
	p.put("crl", p.ca.Revoke(serverPair))
	p.put("empty-crl", p.ca.Revoke())
	p.pair("client", certstest.Leaf{CN: "client"})
	server := p.open().Server()
	for _, tt := range []struct {
		name   string
		change func(o *Options)
		want   string
	}{
		{"good", func(o *Options) {}, ""},
		{"good, no names", func(o *Options) { o.ServerName = "localhost" }, ""},
		{"other name", func(o *Options) { o.ServerName = "example" }, "valid for localhost, not example"},
		{"any server", func(o *Options) { o.ServerName, o.SkipServerVerify, o.TrustedCAFile = "example", true, "" }, ""},
		{"roots of the machine", func(o *Options) { o.TrustedCAFile = "" }, "unknown authority"},
		{"common name", func(o *Options) { o.AllowedCNs = []string{"server"} }, ""},
		{"other common name", func(o *Options) { o.AllowedCNs = []string{"client"} }, "client certificate authentication failed"},
		{"revoked", func(o *Options) { o.CRLFile = p.path("crl") }, "revoked"},
		{"not revoked", func(o *Options) { o.CRLFile = p.path("empty-crl") }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := p.o
			o.ClientCertFile, o.ClientKeyFile = p.path("client.pem"), p.path("client.key")
			o.ServerName = "127.0.0.1"
			tt.change(&o)
			s, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			seen, serverErr, clientErr := handshake(t, server, s.Client())
			if tt.want == "" {
				if serverErr != nil || clientErr != nil {
					t.Fatalf("refused: server: %v; client: %v", serverErr, clientErr)
				}
				if got := seen.PeerCertificates[0].Subject.CommonName; got != "client" {
					t.Errorf("the server was shown %q, want the client's own certificate", got)
				}
			} else if clientErr == nil || !strings.Contains(clientErr.Error(), tt.want) {
				t.Errorf("got %v, want %q", clientErr, tt.want)
			}
		})
	}
}

// Without a certificate of its own a member can still dial.
func TestClientWithoutPair(t *testing.T) {
	p := newPlace(t)
	o := p.o
	o.TrustedCAFile = ""
	listening, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	o = Options{Files: Files{TrustedCAFile: p.path("ca.pem")}, ServerName: "localhost"}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if s.CanListen() {
		t.Error("a store without a certificate can listen")
	}
	if _, _, err := handshake(t, listening.Server(), s.Client()); err != nil {
		t.Error(err)
	}
	if _, err, _ := handshake(t, s.Server(), clientConfig(p.ca, nil)); err == nil {
		t.Error("a listener without a certificate accepted a connection")
	}
}

// A certificate of this member that others reject is logged when it is read.
func TestOutOfDate(t *testing.T) {
	p := newPlace(t)
	for _, tt := range []struct {
		name string
		leaf certstest.Leaf
		want string
	}{{"good", certstest.Leaf{}, ""}, {"expired", certstest.Leaf{Expired: true}, "the certificate of this member expired at "}} {
		p.pair(tt.name, tt.leaf)
		o := p.o
		o.CertFile, o.KeyFile, o.Flags.Prefix = p.path(tt.name+".pem"), p.path(tt.name+".key"), "peer-"
		p.log.TakeAll()
		if _, err := Open(o); err != nil {
			t.Fatal(err)
		}
		said := p.log.FilterLevelExact(zap.WarnLevel).All()
		if tt.want == "" {
			if len(said) > 0 {
				t.Errorf("%s: %v", tt.name, said)
			}
			continue
		}
		if len(said) != 1 || !strings.HasPrefix(said[0].Message, tt.want) || said[0].ContextMap()["flag"] != "--peer-cert-file" {
			t.Errorf("%s: %v", tt.name, said)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	p := newPlace(t)
	p.pair("other", certstest.Leaf{})
	p.put("bad.pem", []byte("text"))
	for _, tt := range []struct {
		change func(o *Options)
		want   string
	}{
		{func(o *Options) { o.KeyFile = "" }, "KeyFile and CertFile must both be present[key: , cert: " + p.path("server.pem") + "]: --peer-key-file and --peer-cert-file"},
		{func(o *Options) { o.CertFile = "" }, "KeyFile and CertFile must both be present[key: " + p.path("server.key") + ", cert: ]: --peer-key-file and --peer-cert-file"},
		{func(o *Options) { o.CertFile = "/none/c" }, "--peer-cert-file: open /none/c: no such file or directory"},
		{func(o *Options) { o.CertFile = p.path("bad.pem") },
			"--peer-cert-file=" + p.path("bad.pem") + " --peer-key-file=" + p.path("server.key") + ": tls: failed to find any PEM data in certificate input"},
		{func(o *Options) { o.KeyFile = p.path("other.key") },
			"--peer-cert-file=" + p.path("server.pem") + " --peer-key-file=" + p.path("other.key") + ": tls: private key does not match public key"},
		{func(o *Options) { o.ClientCertFile = "/c" }, "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: /c]: --peer-client-key-file and --peer-client-cert-file"},
		{func(o *Options) { o.ClientCertFile, o.ClientKeyFile = "/none/c", "/none/k" }, "--peer-client-cert-file: open /none/c: no such file or directory"},
		{func(o *Options) { o.AllowedCNs, o.AllowedHostnames = []string{"a"}, []string{"b"} },
			`AllowedCNs and AllowedHostnames are mutually exclusive (cns=["a"], hostnames=["b"]): --peer-cert-allowed-cn and --peer-cert-allowed-hostname`},
		{func(o *Options) { o.TrustedCAFile = "/none/ca" }, "--peer-trusted-ca-file: open /none/ca: no such file or directory"},
		{func(o *Options) { o.TrustedCAFile = p.path("bad.pem") }, "--peer-trusted-ca-file=" + p.path("bad.pem") + ": no certificate in the file"},
		{func(o *Options) { o.TrustedCAFile = p.path("server.key") }, "--peer-trusted-ca-file=" + p.path("server.key") + ": x509: malformed tbs certificate"},
	} {
		o := p.o
		o.Flags.Prefix = "peer-"
		tt.change(&o)
		if _, err := Open(o); err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

// Errors name each file by the flag that set it, for every kind of file, and a listener
// without a certificate names the flags that set one.
func TestFlagNames(t *testing.T) {
	for _, tt := range []struct {
		flags FlagNames
		want  string
	}{
		{FlagNames{}, "--cert-file --key-file --trusted-ca-file --client-crl-file --client-cert-file --client-cert-allowed-hostname"},
		{FlagNames{Prefix: "peer-"}, "--peer-cert-file --peer-key-file --peer-trusted-ca-file --peer-crl-file --peer-client-cert-file --peer-cert-allowed-hostname"},
		{FlagNames{Client: true}, "--cert --key --cacert --crl-file --client-cert-file --cert-allowed-hostname"},
		{FlagNames{Prefix: "discovery-", Client: true}, "--discovery-cert --discovery-key --discovery-cacert --discovery-crl-file --discovery-client-cert-file --discovery-cert-allowed-hostname"},
	} {
		var got []string
		for _, name := range []string{"cert-file", "key-file", "trusted-ca-file", "crl-file", "client-cert-file", "cert-allowed-hostname"} {
			got = append(got, tt.flags.name(name))
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%+v: %s\nwant %s", tt.flags, got, tt.want)
		}
	}
	const want = "cannot listen on TLS for 127.0.0.1:1: KeyFile and CertFile are not presented: --listen-peer-urls=https://127.0.0.1:1 asks for TLS;" +
		" give --peer-cert-file and --peer-key-file, or --peer-auto-tls to have a certificate generated, or listen without TLS"
	if got := CannotListen("127.0.0.1:1", "--listen-peer-urls=https://127.0.0.1:1 asks for TLS", FlagNames{Prefix: "peer-"}).Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// serial returns the serial number of the server's certificate.
func serial(t *testing.T, server, client *tls.Config) (string, error) {
	t.Helper()
	var shown []byte
	client = client.Clone()
	client.VerifyConnection = func(cs tls.ConnectionState) error {
		shown = cs.PeerCertificates[0].SerialNumber.Bytes()
		return nil
	}
	_, serverErr, clientErr := handshake(t, server, client)
	return string(shown), errors.Join(serverErr, clientErr)
}

// TestReload changes every file under one configuration of a listener.
func TestReload(t *testing.T) {
	p := newPlace(t)
	first := p.pair("server", certstest.Leaf{CN: "first"})
	client := p.ca.Issue(certstest.Leaf{CN: "client"})
	p.put("crl", p.ca.Revoke())
	p.o.CRLFile = p.path("crl")
	server := p.open().Server("h2")

	expect := func(what string, want certstest.Pair, c *tls.Config) {
		t.Helper()
		got, err := serial(t, server, c)
		if err != nil || got != string(want.Serial.Bytes()) {
			t.Fatalf("%s: serial %x, want %x; %v", what, got, want.Serial.Bytes(), err)
		}
	}
	refused := func(what, want string, c *tls.Config) {
		t.Helper()
		if _, err := serial(t, server, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%s: got %v, want %q", what, err, want)
		}
	}
	cc := clientConfig(p.ca, &client)
	expect("at first", first, cc)

	second := p.pair("server", certstest.Leaf{CN: "second"})
	expect("before the files are looked at again", first, cc)
	p.later()
	expect("after a change", second, cc)

	third := p.ca.Issue(certstest.Leaf{CN: "third"})
	p.put("server.pem", third.Cert)
	p.later()
	expect("with half of the new pair", second, cc)
	p.put("server.key", third.Key)
	p.later()
	expect("with both halves", third, cc)

	// A client whose certificate is revoked, and then no longer revoked.
	p.put("crl", p.ca.Revoke(client))
	p.later()
	refused("revoked", "revoked", cc)
	p.put("crl", []byte("damaged"))
	p.later()
	refused("revoked, with a damaged new list", "revoked", cc)
	p.put("crl", p.ca.Revoke())
	p.later()
	expect("no longer revoked", third, cc)

	// Another authority, in a bundle with the old one, then alone.
	next := certstest.NewCA("next")
	newClient := next.Issue(certstest.Leaf{CN: "client"})
	nc := clientConfig(p.ca, &newClient)
	refused("before its authority is trusted", "unknown authority", nc)
	p.put("ca.pem", append(bytes.Clone(next.PEM), p.ca.PEM...))
	p.later()
	expect("with both authorities", third, nc)
	expect("with both authorities, the old one's client", third, cc)
	p.put("ca.pem", next.PEM[:len(next.PEM)/2])
	p.later()
	expect("with a truncated file", third, cc)
	if err := os.Remove(p.path("ca.pem")); err != nil {
		t.Fatal(err)
	}
	p.later()
	expect("without the file", third, cc)
	p.put("ca.pem", next.PEM)
	p.later()
	refused("after the old authority is gone", "unknown authority", cc)
	expect("after the old authority is gone", third, nc)

	for _, name := range []string{"server.pem", "crl", "ca.pem"} {
		found := slices.ContainsFunc(p.log.FilterLevelExact(zap.ErrorLevel).All(), func(e observer.LoggedEntry) bool {
			return strings.Contains(e.ContextMap()["error"].(string), p.path(name))
		})
		if !found {
			t.Errorf("no error in the log names %s", name)
		}
	}
}

// TestReloadOfClient changes the files of outgoing connections.
func TestReloadOfClient(t *testing.T) {
	p := newPlace(t)
	p.o.ServerName = "localhost"
	s := p.open()
	server := s.Server()
	shown := func() string {
		t.Helper()
		cs, serverErr, clientErr := handshake(t, server, s.Client())
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		return cs.PeerCertificates[0].Subject.CommonName
	}
	if got := shown(); got != "server" {
		t.Errorf("showed %q", got)
	}
	before := s.Client()
	if s.Client() != before {
		t.Error("another configuration although nothing has changed")
	}
	p.pair("server", certstest.Leaf{CN: "renewed"})
	p.later()
	if got := shown(); got != "renewed" {
		t.Errorf("showed %q after a change", got)
	}
	p.ca = certstest.NewCA("next")
	p.put("ca.pem", p.ca.PEM)
	p.pair("server", certstest.Leaf{CN: "next"})
	p.later()
	if got := shown(); got != "next" {
		t.Errorf("showed %q under another authority", got)
	}
	if s.Client() == before {
		t.Error("the same configuration for another authority")
	}
}

// A change within the second of the last read, which the file's time does not show, is
// found by its content.
func TestReloadSeesQuickChanges(t *testing.T) {
	p := newPlace(t)
	s := p.open()
	at := p.now.Add(-time.Second)
	stamp := func() {
		for _, name := range []string{"server.pem", "server.key"} {
			if err := os.Chtimes(p.path(name), at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	stamp()
	p.later()
	s.own.get()
	second := p.ca.Issue(certstest.Leaf{CN: "second"})
	for name, content := range map[string][]byte{"server.pem": second.Cert, "server.key": second.Key} {
		if err := os.WriteFile(p.path(name), content, 0o600); err != nil { // the same inode
			t.Fatal(err)
		}
	}
	stamp()
	p.later()
	got, err := s.own.get()
	if err != nil || got.Leaf.Subject.CommonName != "second" {
		t.Errorf("got %v, %v", got.Leaf.Subject, err)
	}
}

// A client that resumes its session passes through all checks again.
func TestSessionsAreNotResumed(t *testing.T) {
	p := newPlace(t)
	client := p.ca.Issue(certstest.Leaf{CN: "client"})
	server := p.open().Server()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c := clientConfig(p.ca, &client)
		c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		c.MaxVersion = version
		for range 3 {
			cs, serverErr, clientErr := handshake(t, server, c)
			if serverErr != nil || clientErr != nil || cs.DidResume {
				t.Errorf("resumed %v; server: %v; client: %v", cs.DidResume, serverErr, clientErr)
			}
		}
	}
}

// A file that stays broken is not logged at every handshake.
func TestBrokenFileIsLoggedSparingly(t *testing.T) {
	p := newPlace(t)
	s := p.open()
	p.put("server.pem", []byte("text"))
	for range 20 {
		p.later()
		if _, err := s.own.get(); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.log.FilterLevelExact(zap.ErrorLevel).Len(); got != 1 {
		t.Errorf("%d lines, want 1", got)
	}
	p.now = p.now.Add(repeatLog)
	s.own.get()
	if got := p.log.FilterLevelExact(zap.ErrorLevel).Len(); got != 2 {
		t.Errorf("%d lines a minute later, want 2", got)
	}
}

type names struct{ addr, host map[string][]string }

var errNoName = errors.New("no such name")

func (n names) LookupAddr(_ context.Context, addr string) ([]string, error) {
	if found, ok := n.addr[addr]; ok {
		return found, nil
	}
	return nil, errNoName
}

func (n names) LookupHost(_ context.Context, host string) ([]string, error) {
	if found, ok := n.host[host]; ok {
		return found, nil
	}
	return nil, errNoName
}

func TestCheckAddress(t *testing.T) {
	p := newPlace(t)
	p.o.Resolver = names{
		addr: map[string][]string{"10.0.0.2": {"b.example."}, "10.0.0.3": {"c.sub.example."}},
		host: map[string][]string{"a.example": {"10.0.0.1"}, "b.example": {}},
	}
	s := p.open()
	p.o.SkipClientSANVerify = true
	lenient := p.open()
	ip := func(text string) []net.IP { return []net.IP{net.ParseIP(text)} }
	for _, tt := range []struct {
		cert *x509.Certificate
		from string
		want string
	}{
		{nil, "10.0.0.1", ""},
		{&x509.Certificate{}, "10.0.0.1", ""},
		{&x509.Certificate{IPAddresses: ip("10.0.0.1")}, "10.0.0.1", ""},
		{&x509.Certificate{IPAddresses: ip("10.0.0.9")}, "10.0.0.1", "x509: certificate is valid for 10.0.0.9, not 10.0.0.1"},
		{&x509.Certificate{DNSNames: []string{"a.example"}}, "10.0.0.1", ""},
		{&x509.Certificate{DNSNames: []string{"b.example"}}, "10.0.0.2", ""},
		{&x509.Certificate{DNSNames: []string{"*.sub.example"}}, "10.0.0.3", ""},
		{&x509.Certificate{DNSNames: []string{"*.example"}}, "10.0.0.3", ""}, // as in etcd
		{&x509.Certificate{DNSNames: []string{"*.other"}}, "10.0.0.3", `tls: "10.0.0.3" does not match any of DNSNames ["*.other"]`},
		{&x509.Certificate{DNSNames: []string{"b.example"}}, "10.0.0.1", `tls: "10.0.0.1" does not match any of DNSNames ["b.example"] (no such name)`},
		{&x509.Certificate{IPAddresses: ip("10.0.0.9"), DNSNames: []string{"a.example"}}, "10.0.0.1", ""},
		{&x509.Certificate{IPAddresses: ip("10.0.0.9"), DNSNames: []string{"a.example"}}, "10.0.0.2", `tls: "10.0.0.2" does not match any of DNSNames ["a.example"]`},
	} {
		var cs tls.ConnectionState
		if tt.cert != nil {
			cs.PeerCertificates = []*x509.Certificate{tt.cert}
		}
		from := &net.TCPAddr{IP: net.ParseIP(tt.from), Port: 1}
		err := s.CheckAddress(t.Context(), cs, from)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%+v from %s: got %v, want %q", tt.cert, tt.from, err, tt.want)
		}
		if err := lenient.CheckAddress(t.Context(), cs, from); err != nil {
			t.Errorf("without verification: %v", err)
		}
		if err := s.CheckAddress(t.Context(), cs, &net.UnixAddr{Name: "@", Net: "unix"}); err != nil {
			t.Errorf("over a socket file: %v", err)
		}
	}
}

func TestSelfSigned(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "fixtures", "peer")
	if _, _, err := SelfSigned(dir, nil, 0, zap.NewNop()); !errors.Is(err, ErrNoValidity) {
		t.Errorf("got %v, want %v", err, ErrNoValidity)
	}
	if exists(dir) {
		t.Error("a refused validity left a directory")
	}
	cert, key, err := SelfSigned(dir, []string{"127.0.0.1:2380", "host:1", ""}, 3, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if cert != filepath.Join(dir, "cert.pem") || key != filepath.Join(dir, "key.pem") {
		t.Errorf("files %s, %s", cert, key)
	}
	if info, err := os.Stat(key); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode of the key: %v, %v", info.Mode(), err)
	}
	content, _ := os.ReadFile(cert)
	s, err := Open(Options{Files: Files{CertFile: cert, KeyFile: key, ClientCertFile: cert, ClientKeyFile: key}, SkipServerVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, _ := s.own.get()
	leaf := pair.Leaf
	if got := leaf.NotAfter.Sub(leaf.NotBefore); got != 3*365*24*time.Hour {
		t.Errorf("valid for %v", got)
	}
	if !slices.Equal(leaf.DNSNames, []string{"host"}) || len(leaf.IPAddresses) != 1 || leaf.Subject.String() != "O=etcd" {
		t.Errorf("names %v, %v, %v", leaf.DNSNames, leaf.IPAddresses, leaf.Subject)
	}
	if _, serverErr, clientErr := handshake(t, s.Server(), s.Client()); serverErr != nil || clientErr != nil {
		t.Errorf("server: %v; client: %v", serverErr, clientErr)
	}
	if _, _, err := SelfSigned(dir, nil, 1, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(cert); !bytes.Equal(again, content) {
		t.Error("a pair that was there was replaced")
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, _, err := SelfSigned(dir, nil, 1, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Files: Files{CertFile: cert, KeyFile: key}}); err != nil {
		t.Errorf("after half of the pair was lost: %v", err)
	}
}

// FuzzFiles parses arbitrary bytes in the place of certificates.
func FuzzFiles(f *testing.F) {
	ca := certstest.NewCA("ca")
	pair := ca.Issue(certstest.Leaf{})
	f.Add(pair.Cert, pair.Key)
	f.Add(ca.PEM, ca.Revoke(pair))
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"), []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if pair, err := parsePair([][]byte{a, b}); err == nil && pair.Leaf == nil {
			t.Error("a pair without a certificate")
		}
		for _, content := range [][]byte{a, b} {
			if pool, err := parsePool([][]byte{content}); err == nil && pool.Equal(x509.NewCertPool()) {
				t.Error("an empty pool")
			}
			if list, err := parseCRL([][]byte{content}); err == nil && list == nil {
				t.Error("no list and no error")
			}
		}
	})
}
