// Package certstest generates certificate authorities, certificates and revocation lists
// for tests.
//
// In: names and rules. Out: PEM and DER, or files of them. Always true: keys are P-256, so
// that a test may generate many; nothing is valid for longer than a day.
package certstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"quorate/internal/clock"
)

// CA signs certificates. The zero value is not usable.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	PEM  []byte // its own certificate
}

// Leaf describes a certificate. The zero value is valid for localhost and
// 127.0.0.1, as a server and as a client.
type Leaf struct {
	CN      string
	DNS     []string // nil with nil IPs: localhost
	IPs     []string // nil with nil DNS: 127.0.0.1
	NoNames bool     // no DNS names and no addresses at all
	Expired bool
	Usages  []x509.ExtKeyUsage // nil: server and client
}

// Pair is a certificate and its key, in PEM.
type Pair struct {
	Cert, Key []byte
	Serial    *big.Int
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // no randomness, or one of our templates is invalid
	}
	return v
}

func serial() *big.Int { return must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))) }

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// NewCA generates an authority with the given name.
func NewCA(name string) *CA {
	key := newKey()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: clock.Now().Add(-time.Hour), NotAfter: clock.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	return &CA{cert: must(x509.ParseCertificate(der)), key: key, PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// Issue signs a certificate.
func (ca *CA) Issue(l Leaf) Pair {
	key := newKey()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: l.CN},
		NotBefore: clock.Now().Add(-time.Hour), NotAfter: clock.Now().Add(23 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.Usages,
	}
	if l.Expired {
		template.NotAfter = clock.Now().Add(-time.Minute)
	}
	if l.Usages == nil {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	if l.DNS == nil && l.IPs == nil && !l.NoNames {
		l.DNS, l.IPs = []string{"localhost"}, []string{"127.0.0.1"}
	}
	template.DNSNames = l.DNS
	for _, ip := range l.IPs {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	der := must(x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key))
	return Pair{
		Cert:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:    pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(key))}),
		Serial: template.SerialNumber,
	}
}

// Revoke returns a list, in DER, that revokes certificates.
func (ca *CA) Revoke(pairs ...Pair) []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: clock.Now().Add(-time.Hour), NextUpdate: clock.Now().Add(24 * time.Hour)}
	for _, p := range pairs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: p.Serial, RevocationTime: clock.Now().Add(-time.Minute)})
	}
	return must(x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key))
}

// Write writes a file so that readers see either the old or the new content.
func Write(path string, content []byte) error {
	temp := path + ".new"
	return errors.Join(os.WriteFile(temp, content, 0o600), os.Rename(temp, path))
}

// WriteTo writes NAME.pem and NAME.key into dir and returns their paths.
func (p Pair) WriteTo(dir, name string) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	return certFile, keyFile, errors.Join(Write(certFile, p.Cert), Write(keyFile, p.Key))
}
