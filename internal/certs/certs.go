// Package certs keeps the certificates, authorities and revocation lists of one
// kind of connection, clients' or members', and decides whom to trust.
//
// In: names of files, rules on the names in certificates. Out: TLS
// configurations for listeners and for outgoing connections. Always true: what
// a configuration uses is what the files held a moment ago; a changed file
// counts from the next handshake on, without a restart, and one that is broken
// or half written changes nothing but the log, which names it. No check is left
// out because a file cannot be read: what cannot be checked is refused.
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
// its section of a configuration file.
type Files struct {
	// CertFile and KeyFile, in PEM, are shown to whoever connects, and to whom
	// this member connects unless ClientCertFile and ClientKeyFile are set.
	CertFile       string `json:"cert-file"`
	KeyFile        string `json:"key-file"`
	ClientCertFile string `json:"client-cert-file"`
	ClientKeyFile  string `json:"client-key-file"`
	ClientCertAuth bool   `json:"client-cert-auth"`
	// TrustedCAFile, in PEM, vouches for the other side; empty means the roots of
	// the machine. Setting it makes listeners require a certificate, as
	// ClientCertAuth does.
	TrustedCAFile string `json:"trusted-ca-file"`
	AutoTLS       bool   `json:"auto-tls"` // generate a certificate; for whoever calls SelfSigned
	// AllowedCNs and AllowedHostnames are what the other side's certificate must
	// have, one of them, as common name or as a name it is valid for. At most one
	// of the lists may be set; empty allows all.
	AllowedCNs       []string `json:"allowed-cn"`
	AllowedHostnames []string `json:"allowed-hostname"`
	// SkipClientSANVerify makes CheckAddress allow everything.
	SkipClientSANVerify bool `json:"skip-client-san-verification"`
	// CRLFile lists revoked certificates, in DER or PEM. Its signature is not
	// checked: who can write the file can also write the others.
	CRLFile string `json:"-"`
}

// Empty reports whether there is no certificate. Certificates that are to be
// generated do not count.
func (f *Files) Empty() bool { return f.CertFile == "" && f.KeyFile == "" }

// String is the settings as etcd logs them.
func (f *Files) String() string {
	return fmt.Sprintf("cert = %s, key = %s, client-cert=%s, client-key=%s, trusted-ca = %s, client-cert-auth = %v, crl-file = %s",
		f.CertFile, f.KeyFile, f.ClientCertFile, f.ClientKeyFile, f.TrustedCAFile, f.ClientCertAuth, f.CRLFile)
}

// Options name the files and rules of one kind of connection. They have the
// meaning of etcd's flags of the same names.
type Options struct {
	Files

	CipherSuites           []uint16 // of TLS 1.2; nil is Go's choice
	MinVersion, MaxVersion uint16   // 0 is TLS 1.2, and Go's choice
	ServerName             string   // what servers are verified as; empty is the host that is dialled
	SkipServerVerify       bool     // accept every server: the certificates of generated pairs cannot be verified

	Flags    FlagNames        // how messages name the flags
	Logger   *zap.Logger      // nil logs nothing
	Now      func() time.Time // nil is clock.Now
	Resolver Resolver         // nil is the machine's
}

// Resolver finds names of addresses and addresses of names.
type Resolver interface {
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupHost(ctx context.Context, host string) ([]string, error)
}

// ErrNotAllowed is why a certificate that is valid is refused by a rule.
var ErrNotAllowed = errors.New("client certificate authentication failed")

// Store holds what Options name. Its methods may be called from any goroutine.
type Store struct {
	o       Options
	own     *watched[*tls.Certificate] // nil without CertFile
	client  *watched[*tls.Certificate] // nil: own
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

// Open reads the files. A revocation list that cannot be read is no error: it
// is logged, and until it can be read, certificates are refused.
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
		// The bracket is etcd's.
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

// about adds to an error which two flags it is about.
func (s *Store) about(err error, a, b string) error {
	return fmt.Errorf("%w: %s and %s", err, s.o.Flags.name(a), s.o.Flags.name(b))
}

// FlagNames say by which flags the files were given.
type FlagNames struct {
	Prefix string // "peer-", say; a listener's files for clients have none
	// Client is for the files of one who connects, and is no member: cert, key and
	// cacert, as etcdctl's.
	Client bool
}

// name is how a message names the flag of the file that peers give by --peer- and
// name.
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

// CannotListen says, in etcd's words, that there is no certificate for a listener
// that is to speak TLS, which flags name one, and which flag asks for the listener.
func CannotListen(addr, because string, f FlagNames) error {
	return fmt.Errorf("cannot listen on TLS for %s: %w: %s; give %s and %s, or %s to have a certificate generated, or listen without TLS",
		addr, errNotPresented, because, f.name("cert-file"), f.name("key-file"), f.name("auto-tls"))
}

// soon is how long before its end a certificate is mentioned.
const soon = 7 * 24 * time.Hour

// outOfDate says that a certificate of our own is refused by others, or soon will
// be; empty for others.
func (s *Store) outOfDate(pair *tls.Certificate) string {
	cert := pair.Leaf
	now := s.o.Now()
	switch {
	case cert == nil:
		return ""
	case now.After(cert.NotAfter):
		return fmt.Sprintf("the certificate of this member expired at %s: whoever verifies it refuses the connection", cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Sprintf("the certificate of this member is not valid before %s: whoever verifies it refuses the connection", cert.NotBefore.UTC().Format(time.RFC3339))
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

// serials are the serial numbers of revoked certificates, as big-endian bytes.
// Like etcd's they count for every issuer.
type serials map[string]struct{}

// parseCRL reads one list in DER or any number of them in PEM.
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

// CanListen reports whether there is a certificate to show.
func (s *Store) CanListen() bool { return s.own != nil }

// RequiresClientCert reports whether listeners want a certificate.
func (s *Store) RequiresClientCert() bool { return s.o.TrustedCAFile != "" || s.o.ClientCertAuth }

// Server returns the configuration of a listener that speaks protocols (ALPN).
// It stays valid; each handshake uses what the files hold by then.
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
	// A resumed session would outlive what was revoked since.
	c.SessionTicketsDisabled = true
	if s.RequiresClientCert() {
		c.ClientAuth = tls.RequireAndVerifyClientCert
		c.ClientCAs = roots
	}
	return c
}

// Client returns the configuration for a connection that is about to be opened.
// It is the same one until an authority changes, and must not be modified.
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
		// Open has read the authorities, and what was read is kept.
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

// build returns what b holds, or makes it anew if the authorities have changed.
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
