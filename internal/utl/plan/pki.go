package plan

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Common names of the certificates. All members share one: the unit allows no other on
// the peer port.
const (
	caCN     = "etcd-ca"
	memberCN = "etcd-member"
	clientCN = "etcdctl"
)

const (
	year = 365 * 24 * time.Hour
	// early is how long before now a certificate becomes valid, for hosts whose clock is
	// slow.
	early = time.Hour
)

// Authority signs the certificates of a cluster.
type Authority struct {
	CertPEM, KeyPEM []byte

	cert *x509.Certificate
	key  crypto.Signer
}

// NewAuthority creates an authority that is valid for that many years of 365 days.
func NewAuthority(now time.Time, years int) (*Authority, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: caCN}, NotAfter: now.Add(time.Duration(years) * year),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	certPEM, keyPEM, err := issue(template, now, nil)
	if err != nil {
		return nil, fmt.Errorf("make the certificate authority: %w", err)
	}
	return ParseAuthority(certPEM, keyPEM, now)
}

// ParseAuthority parses an authority in PEM. Its key may be of any kind that Go can
// sign with.
func ParseAuthority(certPEM, keyPEM []byte, now time.Time) (*Authority, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	switch cert := pair.Leaf; {
	case !ok:
		return nil, errors.New("the key cannot sign")
	case !cert.IsCA || !cert.BasicConstraintsValid:
		return nil, errors.New("the certificate is not that of an authority")
	case !now.Before(cert.NotAfter):
		return nil, fmt.Errorf("the authority was valid until %s", cert.NotAfter.UTC().Format(time.RFC3339))
	default:
		return &Authority{CertPEM: certPEM, KeyPEM: keyPEM, cert: cert, key: key}, nil
	}
}

// certificates returns the TLS files. A member's certificate identifies it as a server
// and, to other members, as a client.
func (o Options) certificates() ([]File, error) {
	var files []File
	ca := o.Authority
	if ca == nil {
		var err error
		if ca, err = NewAuthority(o.Now, o.Years); err != nil {
			return nil, err
		}
		files = append(files,
			File{Path: "ca/" + caKey, Mode: 0o600, Content: ca.KeyPEM},
			File{Path: "ca/" + caCert, Mode: 0o644, Content: ca.CertPEM})
	}
	for _, h := range o.Hosts {
		names := []string{h.Address, "localhost", "127.0.0.1"}
		certPEM, keyPEM, err := o.leaf(ca, memberCN, names, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
		if err != nil {
			return nil, fmt.Errorf("make the certificate of %s: %w", h.Name, err)
		}
		for _, f := range []File{{Path: memberKey, Mode: 0o600, Content: keyPEM}, {Path: memberCert, Mode: 0o644, Content: certPEM}, {Path: caCert, Mode: 0o644, Content: ca.CertPEM}} {
			f.Path, f.Host, f.Dest = dir(h)+"/pki/"+f.Path, h.Name, o.CertDir+"/"+f.Path
			files = append(files, f)
		}
	}
	if o.KeepClient {
		return files, nil
	}
	certPEM, keyPEM, err := o.leaf(ca, clientCN, nil, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of etcdctl: %w", err)
	}
	return append(files,
		File{Path: "client/" + clientKey, Mode: 0o600, Content: keyPEM},
		File{Path: "client/" + clientCert, Mode: 0o644, Content: certPEM}), nil
}

// leaf issues a certificate for names, which expires no later than its authority.
func (o Options) leaf(ca *Authority, cn string, names []string, usage ...x509.ExtKeyUsage) (certPEM, keyPEM []byte, err error) {
	t := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, NotAfter: o.Now.Add(time.Duration(o.Years) * year),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, BasicConstraintsValid: true}
	if ca.cert.NotAfter.Before(t.NotAfter) {
		t.NotAfter = ca.cert.NotAfter
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return issue(t, o.Now, ca)
}

// issue completes the template with a new P-256 key. ca signs it; without one it is
// self-signed.
func issue(t *x509.Certificate, now time.Time, ca *Authority) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	t.NotBefore = now.Add(-early)
	parent, signer := t, crypto.Signer(key)
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	cert, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}
