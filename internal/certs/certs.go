// Package certs holds the certificates, authorities and revocation lists of one kind of
// connection, client or peer, and decides which certificates to trust.
//
// In: file names, and rules about the names in certificates. Out: TLS configurations for
// listeners and for outgoing connections. Always true: a configuration reflects the current
// files. A changed file takes effect from the next handshake on, without a restart; a
// broken or half-written file changes nothing, and the log names it. No check is skipped
// because a file cannot be read: what cannot be checked is rejected.
package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"quorate/internal/clock"

	"go.uber.org/zap"
)

// Files are the files and rules of one kind of connection. The json tags are the keys of
// its section in a configuration file.
type Files struct {
	// CertFile and KeyFile, in PEM, are shown to clients, and to servers unless
	// ClientCertFile and ClientKeyFile are set.
	CertFile       string `json:"cert-file"`
	KeyFile        string `json:"key-file"`
	ClientCertFile string `json:"client-cert-file"`
	ClientKeyFile  string `json:"client-key-file"`
	ClientCertAuth bool   `json:"client-cert-auth"`
	// TrustedCAFile, in PEM, verifies the other side; empty means the system roots. If it
	// is set, listeners require a certificate, as with ClientCertAuth.
	TrustedCAFile string `json:"trusted-ca-file"`
	AutoTLS       bool   `json:"auto-tls"` // the caller is to generate a certificate; see SelfSigned
	// AllowedCNs and AllowedHostnames: the other side's certificate must have one of the
	// former as its common name, or be valid for one of the latter. At most one of the
	// lists may be set; if both are empty, all are allowed.
	AllowedCNs       []string `json:"allowed-cn"`
	AllowedHostnames []string `json:"allowed-hostname"`
	// SkipClientSANVerify makes CheckAddress accept every address.
	SkipClientSANVerify bool `json:"skip-client-san-verification"`
	// CRLFile lists revoked certificates, in DER or PEM. Its signature is not verified: a
	// user who can write this file can write the others too.
	CRLFile string `json:"-"`
}

// Empty reports whether no certificate is configured. Certificates that are to be generated
// do not count.
func (f *Files) Empty() bool { return f.CertFile == "" && f.KeyFile == "" }

// String formats the settings as etcd logs them.
func (f *Files) String() string {
	return fmt.Sprintf("cert = %s, key = %s, client-cert=%s, client-key=%s, trusted-ca = %s, client-cert-auth = %v, crl-file = %s",
		f.CertFile, f.KeyFile, f.ClientCertFile, f.ClientKeyFile, f.TrustedCAFile, f.ClientCertAuth, f.CRLFile)
}

// Options are the files and rules of one kind of connection. They have the meaning of
// etcd's flags of the same names.
type Options struct {
	Files

	CipherSuites           []uint16 // of TLS 1.2; nil is Go's default
	MinVersion, MaxVersion uint16   // 0 is TLS 1.2 for the minimum and Go's default for the maximum
	ServerName             string   // name that servers are verified against; empty is the dialled host
	SkipServerVerify       bool     // skip verification of servers: generated certificates cannot be verified

	Flags    FlagNames        // how errors and log lines name the flags
	Logger   *zap.Logger      // nil logs nothing
	Now      func() time.Time // nil is clock.Now
	Resolver Resolver         // nil is the system's resolver
}

// Resolver looks up names of addresses and addresses of names.
type Resolver interface {
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupHost(ctx context.Context, host string) ([]string, error)
}

// ErrNotAllowed reports a valid certificate that a rule rejects.
var ErrNotAllowed = errors.New("client certificate authentication failed")

// Store holds the files that Options name. It is safe for concurrent use.
type Store struct {
	o       Options
	own     *watched[*tls.Certificate] // nil without CertFile
	client  *watched[*tls.Certificate] // nil: the one of listeners
	roots   *watched[*x509.CertPool]   // nil without TrustedCAFile
	revoked *watched[serials]          // nil without CRLFile

	mu   sync.Mutex
	dial built // guarded by mu
}

// built is a configuration and the roots it was built with.
type built struct {
	roots  *x509.CertPool
	config *tls.Config
}

// Open reads the files. An unreadable revocation list is not an error: it is logged, and
// certificates are rejected until it can be read.
func Open(o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Now == nil {
		o.Now = clock.Now
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	if o.MinVersion == 0 {
		o.MinVersion = tls.VersionTLS12
	}
	s := &Store{o: o}
	if o.CertFile != "" || o.KeyFile != "" {
		if err := s.openPairs(); err != nil {
			return nil, err
		}
		if len(o.AllowedCNs) > 0 && len(o.AllowedHostnames) > 0 {
			return nil, s.about(fmt.Errorf("AllowedCNs and AllowedHostnames are mutually exclusive (cns=%q, hostnames=%q)", o.AllowedCNs, o.AllowedHostnames),
				"cert-allowed-cn", "cert-allowed-hostname")
		}
	}
	if o.TrustedCAFile != "" {
		s.roots = watch(s, parsePool, file{"trusted-ca-file", o.TrustedCAFile})
		if _, err := s.roots.get(); err != nil {
			return nil, err
		}
	}
	if o.CRLFile != "" {
		s.revoked = watch(s, parseCRL, file{"crl-file", o.CRLFile})
		if _, err := s.revoked.get(); err != nil {
			o.Logger.Error(textUnusable, zap.String("file", o.CRLFile), zap.Error(err))
		}
	}
	return s, nil
}

func (s *Store) openPairs() error {
	o := &s.o
	if o.CertFile == "" || o.KeyFile == "" {
		return s.about(fmt.Errorf("KeyFile and CertFile must both be present[key: %v, cert: %v]", o.KeyFile, o.CertFile), "key-file", "cert-file")
	}
	s.own = watch(s, parsePair, file{"cert-file", o.CertFile}, file{"key-file", o.KeyFile})
	s.own.check = s.outOfDate
	if _, err := s.own.get(); err != nil {
		return err
	}
	if (o.ClientCertFile == "") != (o.ClientKeyFile == "") {
		// The unbalanced bracket is etcd's.
		return s.about(fmt.Errorf("ClientKeyFile and ClientCertFile must both be present or both absent: key: %v, cert: %v]", o.ClientKeyFile, o.ClientCertFile),
			"client-key-file", "client-cert-file")
	}
	if o.ClientCertFile == "" {
		return nil
	}
	s.client = watch(s, parsePair, file{"client-cert-file", o.ClientCertFile}, file{"client-key-file", o.ClientKeyFile})
	s.client.check = s.outOfDate
	_, err := s.client.get()
	return err
}

// about appends the two flags that an error is about.
func (s *Store) about(err error, a, b string) error {
	return fmt.Errorf("%w: %s and %s", err, s.o.Flags.name(a), s.o.Flags.name(b))
}

// FlagNames tell which flags set the files.
type FlagNames struct {
	Prefix string // for example "peer-"; empty for client listeners
	// Client selects the flags of a client that is not a member: cert, key and cacert, as
	// in etcdctl.
	Client bool
}

// name returns the flag that sets a file. The argument is its name among the --peer- flags,
// without that prefix.
func (f FlagNames) name(name string) string {
	if f.Client {
		switch name {
		case "cert-file", "key-file":
			name = name[:len(name)-len("-file")]
		case "trusted-ca-file":
			name = "cacert"
		}
	} else if f.Prefix == "" && (name == "crl-file" || strings.HasPrefix(name, "cert-allowed-")) {
		name = "client-" + name
	}
	return "--" + f.Prefix + name
}

// CannotListen reports, in etcd's words, that a TLS listener has no certificate, which
// flags set one, and which flag asks for the listener.
func CannotListen(addr, because string, f FlagNames) error {
	return fmt.Errorf("cannot listen on TLS for %s: %w: %s; give %s and %s, or %s to have a certificate generated, or listen without TLS",
		addr, errNotPresented, because, f.name("cert-file"), f.name("key-file"), f.name("auto-tls"))
}

// soon is how long before its expiry a certificate is logged.
const soon = 7 * 24 * time.Hour

// outOfDate returns why other programs reject this member's certificate, or soon will;
// empty if they accept it.
func (s *Store) outOfDate(pair *tls.Certificate) string {
	cert := pair.Leaf
	now := s.o.Now()
	switch {
	case cert == nil:
		return ""
	case now.After(cert.NotAfter):
		return fmt.Sprintf("the certificate of this member expired at %s: peers and clients that verify it reject the connection", cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Sprintf("the certificate of this member is not valid before %s: peers and clients that verify it reject the connection", cert.NotBefore.UTC().Format(time.RFC3339))
	case cert.NotAfter.Sub(now) < soon && cert.NotAfter.Sub(cert.NotBefore) > 2*soon:
		return fmt.Sprintf("the certificate of this member expires at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return ""
}

func parsePair(content [][]byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(content[0], content[1])
	return &pair, err
}

var errNotPresented = errors.New("KeyFile and CertFile are not presented")

var errNoCertificate = errors.New("no certificate in the file")

func parsePool(content [][]byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	found := false
	for rest := content[0]; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(cert)
		found = true
	}
	if !found {
		return nil, errNoCertificate
	}
	return pool, nil
}

// serials are the serial numbers of revoked certificates, as big-endian bytes. As in etcd,
// they apply to every issuer.
type serials map[string]struct{}

// parseCRL parses one list in DER, or any number of lists in PEM.
func parseCRL(content [][]byte) (serials, error) {
	lists := [][]byte{content[0]}
	if bytes.Contains(content[0], []byte("-----BEGIN")) {
		lists = nil
		for rest := content[0]; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			lists = append(lists, block.Bytes)
		}
		if len(lists) == 0 {
			return nil, errors.New("no revocation list in the file")
		}
	}
	revoked := serials{}
	for _, der := range lists {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, err
		}
		for _, entry := range list.RevokedCertificateEntries {
			revoked[string(entry.SerialNumber.Bytes())] = struct{}{}
		}
	}
	return revoked, nil
}

// CanListen reports whether there is a certificate for listeners.
func (s *Store) CanListen() bool { return s.own != nil }

// RequiresClientCert reports whether listeners require a certificate.
func (s *Store) RequiresClientCert() bool { return s.o.TrustedCAFile != "" || s.o.ClientCertAuth }

// Server returns the configuration of a listener for the given ALPN protocols. It stays
// valid; each handshake uses the current files.
func (s *Store) Server(protocols ...string) *tls.Config {
	var current built // guarded by s.mu
	return &tls.Config{
		MinVersion: s.o.MinVersion, MaxVersion: s.o.MaxVersion, CipherSuites: s.o.CipherSuites, NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.build(&current, func(roots *x509.CertPool) *tls.Config { return s.server(roots, protocols) })
		},
	}
}

func (s *Store) server(roots *x509.CertPool, protocols []string) *tls.Config {
	c := s.base()
	c.NextProtos = protocols
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if s.own == nil {
			return nil, errNotPresented
		}
		return s.own.get()
	}
	// A resumed session would outlive a revocation.
	c.SessionTicketsDisabled = true
	if s.RequiresClientCert() {
		c.ClientAuth = tls.RequireAndVerifyClientCert
		c.ClientCAs = roots
	}
	return c
}

// Client returns the configuration for a connection that is about to be opened. It returns
// the same one until the authorities change; it must not be modified.
func (s *Store) Client() *tls.Config {
	c, err := s.build(&s.dial, func(roots *x509.CertPool) *tls.Config {
		c := &tls.Config{}
		if s.own != nil {
			c = s.base()
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if s.client != nil {
					return s.client.get()
				}
				return s.own.get()
			}
		}
		c.ServerName = s.o.ServerName
		c.RootCAs = roots
		c.InsecureSkipVerify = s.o.SkipServerVerify
		return c
	})
	if err != nil {
		// Open has read the authorities, and the last good value is retained.
		panic(fmt.Sprintf("certs: authorities of %s are gone: %v", s.o.TrustedCAFile, err))
	}
	return c
}

func (s *Store) base() *tls.Config {
	return &tls.Config{
		MinVersion: s.o.MinVersion, MaxVersion: s.o.MaxVersion, CipherSuites: s.o.CipherSuites,
		VerifyConnection: s.verify,
	}
}

// build returns the configuration in b, and rebuilds it if the authorities have changed.
func (s *Store) build(b *built, make func(roots *x509.CertPool) *tls.Config) (*tls.Config, error) {
	var roots *x509.CertPool
	if s.roots != nil {
		var err error
		if roots, err = s.roots.get(); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.config == nil || b.roots != roots {
		*b = built{roots, make(roots)}
	}
	return b.config, nil
}
