package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
)

// verify checks the other side's valid certificate against the revocation list and the
// rules. Both ends of a connection call it.
func (s *Store) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil // and none was required
	}
	if s.revoked != nil {
		revoked, err := s.revoked.get()
		if err != nil {
			return err
		}
		for _, cert := range cs.PeerCertificates {
			if _, found := revoked[string(cert.SerialNumber.Bytes())]; found {
				return fmt.Errorf("certificate serial %x revoked", cert.SerialNumber.Bytes())
			}
		}
	}
	if len(s.o.AllowedCNs) == 0 && len(s.o.AllowedHostnames) == 0 {
		return nil
	}
	for _, chain := range cs.VerifiedChains {
		if len(chain) > 0 && s.allowed(chain[0]) {
			return nil
		}
	}
	return ErrNotAllowed
}

func (s *Store) allowed(cert *x509.Certificate) bool {
	return slices.Contains(s.o.AllowedCNs, cert.Subject.CommonName) ||
		slices.ContainsFunc(s.o.AllowedHostnames, func(name string) bool { return cert.VerifyHostname(name) == nil })
}

// CheckAddress compares the remote address of a connection with the names in its
// certificate, if there are any: one of the certificate's addresses must be the remote one,
// or one of its DNS names must belong to it. Connections over sockets without an address
// pass.
func (s *Store) CheckAddress(ctx context.Context, cs tls.ConnectionState, remote net.Addr) error {
	if s.o.SkipClientSANVerify || len(cs.PeerCertificates) == 0 {
		return nil
	}
	if _, unix := remote.(*net.UnixAddr); unix {
		return nil
	}
	host, _, err := net.SplitHostPort(remote.String())
	if err != nil {
		return err
	}
	cert := cs.PeerCertificates[0]
	if len(cert.IPAddresses) > 0 {
		mismatch := cert.VerifyHostname(host)
		if mismatch == nil || len(cert.DNSNames) == 0 {
			return mismatch
		}
	}
	if len(cert.DNSNames) == 0 {
		return nil
	}
	return s.checkNames(ctx, host, cert.DNSNames)
}

// checkNames looks for host among the DNS names of a certificate: first by the names of the
// address, then by the addresses of the names.
func (s *Store) checkNames(ctx context.Context, host string, names []string) error {
	found, failed := s.o.Resolver.LookupAddr(ctx, host)
	for _, name := range found {
		name = strings.TrimSuffix(name, ".")
		for _, want := range names {
			suffix, wild := strings.CutPrefix(want, "*")
			if name == want || wild && strings.HasPrefix(suffix, ".") && strings.HasSuffix(name, suffix) {
				return nil
			}
		}
	}
	for _, name := range names {
		if strings.HasPrefix(name, "*.") {
			continue
		}
		addrs, err := s.o.Resolver.LookupHost(ctx, name)
		if err != nil {
			failed = err
		}
		if slices.Contains(addrs, host) {
			return nil
		}
	}
	if failed != nil {
		return fmt.Errorf("tls: %q does not match any of DNSNames %q (%w)", host, names, failed)
	}
	return fmt.Errorf("tls: %q does not match any of DNSNames %q", host, names)
}
