package config

import (
	"crypto/tls"
	"fmt"
	"net/url"
	"slices"

	"quorate/internal/certs"
	"quorate/internal/listen"
	"quorate/internal/suggest"
)

// Certs returns the files and rules of t with the TLS versions and cipher suites, which are
// common to all connections. prefix is that of the flags: "peer-" or empty.
func (c *Config) Certs(t certs.Files, prefix string) certs.Options {
	suites, _ := cipherSuites(c.CipherSuites) // already validated
	low, _ := tlsVersion(c.TLSMinVersion)
	high, _ := tlsVersion(c.TLSMaxVersion)
	return certs.Options{
		Files: t, CipherSuites: suites, MinVersion: low, MaxVersion: high,
		Flags: certs.FlagNames{Prefix: prefix}, Logger: c.lg,
	}
}

// IsSecure reports whether the scheme of u asks for TLS.
func IsSecure(u url.URL) bool { return isSecure(u) }

// checkSecurity rejects URLs that ask for TLS without a certificate, and unknown cipher
// suites.
func (c *Config) checkSecurity() error {
	if _, err := cipherSuites(c.CipherSuites); err != nil {
		return fmt.Errorf("%w: --cipher-suites", err)
	}
	noCert := c.ClientTLS.Empty() && !c.ClientTLS.AutoTLS
	for _, u := range slices.Concat(c.ListenClientURLs, c.ListenClientHTTPURLs) {
		if isSecure(u) && noCert {
			return fmt.Errorf("TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS scheme, or --auto-tls", u.String())
		}
	}
	for _, u := range c.ListenClientHTTPURLs {
		same := func(v url.URL) bool {
			_, a := listen.Address(u)
			_, b := listen.Address(v)
			return a == b
		}
		if slices.ContainsFunc(c.ListenClientURLs, same) {
			return fmt.Errorf("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url %s", u.String())
		}
	}
	for _, u := range c.ListenMetricsURLs {
		if isSecure(u) && noCert {
			return fmt.Errorf("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url, or --auto-tls: --listen-metrics-urls=%s", u.String())
		}
	}
	return nil
}

func tlsVersion(text string) (uint16, error) {
	switch text {
	case "":
		return 0, nil
	case "TLS1.2":
		return tls.VersionTLS12, nil
	case "TLS1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("unexpected TLS version %q (must be one of: TLS1.2, TLS1.3)", text)
}

// oldSuites are names that Go no longer knows.
var oldSuites = map[string]uint16{
	"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
}

// cipherSuites returns the ids of cipher suites by name, nil for a single empty name.
func cipherSuites(names []string) ([]uint16, error) {
	if len(names) == 1 && names[0] == "" {
		return nil, nil
	}
	var ids []uint16
	for _, name := range names {
		id, known := oldSuites[name]
		for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
			if s.Name == name {
				id, known = s.ID, true
			}
		}
		if !known {
			err := fmt.Errorf("unexpected TLS cipher suite %q", name)
			if nearest := suggest.Nearest(name, suiteNames()); nearest != "" {
				err = fmt.Errorf("%w; is %q meant?", err, nearest)
			}
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func suiteNames() []string {
	var names []string
	for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		names = append(names, s.Name)
	}
	return names
}
