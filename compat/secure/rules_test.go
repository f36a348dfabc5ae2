package secure

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"quorate/compat/child"
	"quorate/compat/pki"
)

// TestRules has clients and members with all kinds of certificates connect to our server and to real etcd.
func TestRules(t *testing.T) {
	ca, foreign := pki.NewCA("ca"), pki.NewCA("foreign")
	good, revoked := ca.Issue("good"), ca.Issue("revoked")
	pairs := map[string]pki.Pair{
		"good":      good,
		"revoked":   revoked,
		"other":     ca.Issue("other", "other.example", "127.0.0.1"),
		"elsewhere": ca.Issue("good", "192.0.2.1"),
		"nameless":  ca.Issue("good", "192.0.2.1", "localhost"), // the address has one of its names
		"foreign":   foreign.Issue("good"),
	}
	const clients, peers = "client", "peer"
	for _, tt := range []struct {
		name    string
		traffic string
		flags   func(s *site) []string
		let     string // who is admitted: names of pairs, "none" for no certificate
	}{
		{"clients", clients, nil, "good revoked other elsewhere nameless"},
		{"revoked clients", clients, func(s *site) []string { return []string{"--client-crl-file=" + s.files.File("crl")} }, "good other elsewhere nameless"},
		{"clients by name", clients, func(*site) []string {
			return []string{"--client-cert-allowed-hostname=x.example,other.example"}
		}, "other"},
		{"members", peers, nil, "good revoked other nameless"},
		{"revoked members", peers, func(s *site) []string { return []string{"--peer-crl-file=" + s.files.File("crl")} }, "good other nameless"},
		{"members by common name", peers, func(*site) []string { return []string{"--peer-cert-allowed-cn=m0,good"} }, "good nameless elsewhereX"},
		{"members by name", peers, func(*site) []string { return []string{"--peer-cert-allowed-hostname=other.example,m0.example"} }, "other"},
		{"members from anywhere", peers, func(*site) []string { return []string{"--peer-skip-client-san-verification"} }, "good revoked other elsewhere nameless"},
	} {
		for _, program := range []string{etcd, real} {
			t.Run(tt.name+"/"+filepath.Base(program), func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				s.files.Put("ca.pem", ca.PEM)
				s.files.Put("crl", ca.Revoke(revoked))
				m := s.members(program)[0]
				s.files.PutPair("m0", ca.Issue("m0", "127.0.0.1", "localhost", "m0.example"))
				m.flags = s.tlsFlags("m0")
				if tt.flags != nil {
					m.flags = append(m.flags, tt.flags(s)...)
				}
				m.start()
				addr, page := m.client, "/health"
				if tt.traffic == peers {
					addr, page = m.peer, "/version"
				}
				child.Eventually(t, limit, "the port answers a client", func() error {
					if !m.p.Running() {
						t.Fatal("the member has ended")
					}
					for _, pair := range pairs {
						if got, err := get("https://"+addr+page, pki.Client(ca.PEM, &pair), false); err == nil && strings.Contains(got, " 200 ") {
							return nil
						}
					}
					return fmt.Errorf("no client")
				})
				allowed := strings.Fields(tt.let)
				try := func(name string, pair *pki.Pair) {
					want := false
					for _, a := range allowed {
						want = want || a == name
					}
					got, err := get("https://"+addr+page, pki.Client(ca.PEM, pair), false)
					if (err == nil) != want {
						t.Errorf("%s: let in %v, want %v: %s %v", name, err == nil, want, got, err)
					}
					if tt.traffic == clients {
						if err := s.put(addr, pki.Client(ca.PEM, pair), "k"); want && err != nil {
							t.Errorf("%s: %v", name, err)
						}
					}
				}
				for name, pair := range pairs {
					try(name, &pair)
				}
				try("none", nil)
			})
		}
	}
}

// TestRevoke revokes a client while the member runs.
func TestRevoke(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ca := pki.NewCA("ca")
	s.files.Put("ca.pem", ca.PEM)
	crl := s.files.Put("crl", ca.Revoke())
	m := s.members(etcd)[0]
	s.files.PutPair("m0", ca.Issue("m0"))
	m.flags = append(s.tlsFlags("m0"), "--client-crl-file="+crl)
	m.start()
	pair, other := ca.Issue("client"), ca.Issue("other")
	c := pki.Client(ca.PEM, &pair)
	m.waitReady(c)
	before, end := s.grpcClient(m.client, c)
	defer end()
	if _, err := before.PutWithin(limit, "k", "v"); err != nil {
		t.Fatal(err)
	}
	s.files.Put("crl", ca.Revoke(pair))
	child.Eventually(t, limit, "revocation", func() error {
		if _, err := get("https://"+m.client+"/health", c, false); err == nil {
			return fmt.Errorf("still let in")
		}
		return nil
	})
	if err := s.put(m.client, pki.Client(ca.PEM, &other), "k"); err != nil {
		t.Errorf("another client: %v", err)
	}
	if _, err := before.PutWithin(limit, "k", "v"); err != nil {
		t.Errorf("a connection from before: %v", err) // as in etcd
	}
}

// TestGenerated runs a mixed cluster whose members generate their certificates.
func TestGenerated(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ms := s.members(etcd, real, etcd)
	for _, m := range ms {
		m.flags = []string{"--auto-tls", "--peer-auto-tls", "--self-signed-cert-validity=2"}
		m.start()
	}
	fixtures := func(m *member, kind string) []byte {
		t.Helper()
		dir := filepath.Join(s.dir, m.name+".etcd", "fixtures", kind)
		if info, err := os.Stat(filepath.Join(dir, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: key: %v, %v", m.name, info, err)
		}
		cert, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	child.Eventually(t, limit, "certificates", func() error {
		for _, m := range ms {
			dir := filepath.Join(s.dir, m.name+".etcd", "fixtures", "client")
			if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")); err != nil {
				return err // real etcd writes them in pieces
			}
		}
		return nil
	})
	// Each certificate is self-signed.
	var all []byte
	for _, m := range ms {
		all = append(all, fixtures(m, "client")...)
	}
	c := pki.Client(all, nil)
	for _, m := range ms {
		m.waitReady(c)
	}
	s.sameHash(ms, c)
	peer := fixtures(ms[0], "peer")
	ms[0].stop()
	ms[0].start()
	ms[0].waitReady(c)
	if string(fixtures(ms[0], "peer")) != string(peer) {
		t.Error("a restart made another certificate")
	}
	s.sameHash(ms, c)
}
