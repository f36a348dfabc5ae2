package plan

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

// find returns the content of a file of the plan.
func find(t *testing.T, p *Plan, path string) []byte {
	t.Helper()
	for _, f := range p.Files {
		if f.Path == path {
			return f.Content
		}
	}
	t.Fatalf("the plan has no %s", path)
	return nil
}

func certificate(t *testing.T, p *Plan, path string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(find(t, p, path))
	if block == nil || len(rest) > 0 {
		t.Fatalf("%s is not one block of PEM", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCertificatesVerify verifies each certificate against the authority, for every way
// in which it is used, and for ways in which it must not be.
func TestCertificatesVerify(t *testing.T) {
	o := options(t, func(o *Options) { o.TLS, o.Out = true, "x" }, "a=10.0.0.1", "b=host-b.example.test", "c=2001:db8::3")
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate(t, p, "ca/ca.pem"))
	verify := func(path, name string, use x509.ExtKeyUsage, at time.Time) error {
		_, err := certificate(t, p, path).Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{use}, CurrentTime: at})
		return err
	}
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	for _, c := range []struct {
		path, name string
		use        x509.ExtKeyUsage
		at         time.Time
		ok         bool
	}{
		{"hosts/a/pki/member.pem", "10.0.0.1", server, now, true},
		{"hosts/a/pki/member.pem", "localhost", server, now, true},
		{"hosts/a/pki/member.pem", "127.0.0.1", server, now, true},
		{"hosts/a/pki/member.pem", "10.0.0.2", server, now, false},
		{"hosts/a/pki/member.pem", "", client, now, true},
		{"hosts/b/pki/member.pem", "host-b.example.test", server, now, true},
		{"hosts/c/pki/member.pem", "2001:db8::3", server, now, true},
		{"hosts/c/pki/member.pem", "2001:db8::3", server, now.Add(10*year - time.Second), true},
		{"hosts/c/pki/member.pem", "2001:db8::3", server, now.Add(10*year + time.Second), false},
		{"hosts/c/pki/member.pem", "2001:db8::3", server, now.Add(-30 * time.Minute), true},
		{"client/client.pem", "", client, now, true},
		{"client/client.pem", "", server, now, false},
	} {
		if err := verify(c.path, c.name, c.use, c.at); (err == nil) != c.ok {
			t.Errorf("%s as %q, use %d, at %s: %v, want accepted %v", c.path, c.name, c.use, c.at, err, c.ok)
		}
	}
	if cn := certificate(t, p, "hosts/a/pki/member.pem").Subject.CommonName; cn != memberCN {
		t.Errorf("a member is called %q", cn)
	}
	if c := certificate(t, p, "client/client.pem"); c.Subject.CommonName == memberCN || c.IsCA {
		t.Error("the certificate of a client passes for a member or an authority")
	}
	serials := map[string]bool{}
	for _, path := range []string{"ca/ca.pem", "hosts/a/pki/member.pem", "hosts/b/pki/member.pem", "hosts/c/pki/member.pem", "client/client.pem"} {
		serials[certificate(t, p, path).SerialNumber.String()] = true
	}
	if len(serials) != 5 {
		t.Errorf("5 certificates have %d serial numbers", len(serials))
	}
}

// TestAuthorityIsUsedAgain: a plan with an existing authority adds none, and its
// certificates expire with it.
func TestAuthorityIsUsedAgain(t *testing.T) {
	ca, err := NewAuthority(now, 2)
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(options(t, func(o *Options) { o.TLS, o.Authority, o.KeepClient = true, ca, true }, three...))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range p.Files {
		if strings.HasPrefix(f.Path, "ca/") || strings.HasPrefix(f.Path, "client/") {
			t.Errorf("there is %s", f.Path)
		}
	}
	c := certificate(t, p, "hosts/etcd-3/pki/member.pem")
	if err := c.CheckSignatureFrom(ca.cert); err != nil {
		t.Error(err)
	}
	if !c.NotAfter.Equal(ca.cert.NotAfter) || !c.NotAfter.Equal(now.Add(2*year)) {
		t.Errorf("valid until %s, the authority until %s", c.NotAfter, ca.cert.NotAfter)
	}
}

func TestAuthorityIsChecked(t *testing.T) {
	ca, err := NewAuthority(now, 1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority(now, 1)
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(options(t, func(o *Options) { o.TLS, o.Authority = true, ca }, three...))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cert, key []byte
		at        time.Time
		want      string
	}{
		{ca.CertPEM, ca.KeyPEM, now, ""},
		{ca.CertPEM, other.KeyPEM, now, "private key does not match"},
		{ca.CertPEM, nil, now, "PEM"},
		{ca.CertPEM, ca.KeyPEM, now.Add(year), "was valid until 2027-07-01T12:00:00Z"},
		{find(t, p, "client/client.pem"), find(t, p, "client/client.key"), now, "not that of an authority"},
	} {
		_, err := ParseAuthority(c.cert, c.key, c.at)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// FuzzParseAuthority: an accepted authority can sign.
func FuzzParseAuthority(f *testing.F) {
	ca, err := NewAuthority(now, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ca.CertPEM, ca.KeyPEM)
	f.Add(ca.KeyPEM, ca.CertPEM)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte{})
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		ca, err := ParseAuthority(cert, key, now)
		if err != nil {
			return
		}
		o := Default()
		o.Hosts, o.TLS, o.Authority, o.Now = []Host{{"a", "10.0.0.1"}}, true, ca, now
		if _, err := New(o); err != nil {
			t.Error(err)
		}
	})
}
