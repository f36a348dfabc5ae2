package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"quorate/internal/suggest"
)

// Protocols are the TLS versions and cipher suites of all connections of a process, by
// their names.
type Protocols struct {
	CipherSuites           []string
	MinVersion, MaxVersion string // TLS1.2, TLS1.3, or empty
}

// CheckVersions rejects unknown versions, and versions and suites that exclude each other.
func (p Protocols) CheckVersions() error {
	low, err := tlsVersion(p.MinVersion)
	if err != nil {
		return fmt.Errorf("%w: --tls-min-version", err)
	}
	high, err := tlsVersion(p.MaxVersion)
	if err != nil {
		return fmt.Errorf("%w: --tls-max-version", err)
	}
	if high != 0 && low > high {
		return fmt.Errorf("min version (%s) is greater than max version (%s): --tls-min-version and --tls-max-version", p.MinVersion, p.MaxVersion)
	}
	if low == tls.VersionTLS13 && len(p.CipherSuites) > 0 {
		return errors.New("cipher suites cannot be configured when only TLS1.3 is enabled: leave out --cipher-suites, or lower --tls-min-version")
	}
	return nil
}

// CheckSuites rejects unknown cipher suites.
func (p Protocols) CheckSuites() error {
	if _, err := cipherSuites(p.CipherSuites); err != nil {
		return fmt.Errorf("%w: --cipher-suites", err)
	}
	return nil
}

// Options returns the options of one kind of connection with these protocols, which must be
// valid. prefix is that of the flags: "peer-" or empty.
func (p Protocols) Options(files Files, prefix string, lg *zap.Logger) Options {
	o := Options{Files: files, Flags: FlagNames{Prefix: prefix}, Logger: lg}
	o.CipherSuites, _ = cipherSuites(p.CipherSuites)
	o.MinVersion, _ = tlsVersion(p.MinVersion)
	o.MaxVersion, _ = tlsVersion(p.MaxVersion)
	return o
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
