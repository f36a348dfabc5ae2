// Package pki creates certificate authorities, certificates and revocation lists for the lanes.
//
// In: names. Out: PEM files for a server's flags, and TLS configurations for clients. Invariant: nothing is
// valid for longer than a day; a file is replaced by one rename, so a server never reads a partial file.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA signs certificates.
type CA struct {
	PEM  []byte
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Pair is a certificate with its key, in PEM.
type Pair struct {
	Cert, Key []byte
	serial    *big.Int
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("pki: %v", err)) // our own templates
	}
	return v
}

func sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey, by *ecdsa.PrivateKey) []byte {
	template.SerialNumber = must(rand.Int(rand.Reader, big.NewInt(1<<62)))
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(20 * time.Hour)
	}
	return must(x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by))
}

// NewCA creates an authority.
func NewCA(name string) *CA {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der := sign(template, template, key, key)
	return &CA{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert: must(x509.ParseCertificate(der)), key: key}
}

// Issue creates a certificate for servers and clients. names are DNS names and addresses; without any it is
// valid for localhost and 127.0.0.1.
func (ca *CA) Issue(cn string, names ...string) Pair { return ca.issue(time.Time{}, cn, names...) }

// Expired creates a certificate like Issue that was valid until a minute ago.
func (ca *CA) Expired(cn string, names ...string) Pair {
	return ca.issue(time.Now().Add(-time.Minute), cn, names...)
}

func (ca *CA) issue(until time.Time, cn string, names ...string) Pair {
	if len(names) == 0 {
		names = []string{"localhost", "127.0.0.1"}
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der := sign(template, ca.cert, key, ca.key)
	return Pair{Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:    pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(key))}),
		serial: template.SerialNumber}
}

// Revoke returns a revocation list in DER, which every version of etcd reads.
func (ca *CA) Revoke(pairs ...Pair) []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(20 * time.Hour)}
	for _, p := range pairs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: p.serial, RevocationTime: time.Now()})
	}
	return must(x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key))
}

// Client is the configuration of a client that trusts the authorities in roots and presents p, whatever
// authorities the server asks for; nil presents none.
func Client(roots []byte, p *Pair) *tls.Config {
	c := &tls.Config{RootCAs: x509.NewCertPool()}
	c.RootCAs.AppendCertsFromPEM(roots)
	if p != nil {
		cert := must(tls.X509KeyPair(p.Cert, p.Key))
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return c
}

// Dir is a directory of files for servers.
type Dir struct {
	testing.TB
	Path string
}

// Put replaces a file and returns its path.
func (d Dir) Put(name string, content []byte) string {
	d.Helper()
	path := filepath.Join(d.Path, name)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		d.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		d.Fatal(err)
	}
	return path
}

// PutPair replaces NAME.pem and NAME.key.
func (d Dir) PutPair(name string, p Pair) {
	d.Helper()
	d.Put(name+".key", p.Key)
	d.Put(name+".pem", p.Cert)
}

// File is the path of a file in the directory.
func (d Dir) File(name string) string { return filepath.Join(d.Path, name) }
