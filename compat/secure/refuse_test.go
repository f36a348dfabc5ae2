package secure

import (
	"path/filepath"
	"strings"
	"testing"

	"quorate/compat/child"
	"quorate/compat/pki"
)

// TestWrongFiles starts servers with TLS settings that cannot work: ours reports what etcd reports, in one line,
// and leaves no data directory behind.
func TestWrongFiles(t *testing.T) {
	ca, other := pki.NewCA("ca"), pki.NewCA("other")
	const runs = -1
	for _, tt := range []struct {
		name  string
		flags string // DIR is the directory of the files
		say   string // in both reasons; the message, then the error
		ours  string // in ours alone
		code  int    // it starts
		real  int    // exit code of etcd, if it is another
	}{
		{name: "https peers without certificate", flags: "PLAIN", say: "discovery failed|cannot listen on TLS for 127.0.0.1:|KeyFile and CertFile are not presented", ours: "--listen-peer-urls=https://127.0.0.1:|give --peer-cert-file and --peer-key-file, or --peer-auto-tls", code: 1},
		{name: "peer certificate without key", flags: "PLAIN --peer-cert-file=DIR/a.pem", say: "discovery failed|KeyFile and CertFile must both be present[key: , cert: DIR/a.pem]", code: 1},
		{name: "peer key without certificate", flags: "PLAIN --peer-key-file=DIR/a.key", say: "discovery failed|KeyFile and CertFile must both be present[key: DIR/a.key, cert: ]", code: 1},
		{name: "no such peer certificate", flags: "PLAIN --peer-cert-file=DIR/x --peer-key-file=DIR/a.key", say: "discovery failed|open DIR/x: no such file or directory", code: 1},
		{name: "no such peer key", flags: "PLAIN --peer-cert-file=DIR/a.pem --peer-key-file=DIR/x", say: "discovery failed|open DIR/x: no such file or directory", code: 1},
		{name: "damaged peer certificate", flags: "PLAIN --peer-cert-file=DIR/bad --peer-key-file=DIR/a.key",
			say: "discovery failed|tls: failed to find any PEM data in certificate input", ours: "--peer-cert-file=DIR/bad", code: 1},
		{name: "peer key of another certificate", flags: "PLAIN --peer-cert-file=DIR/a.pem --peer-key-file=DIR/b.key",
			say: "discovery failed|tls: private key does not match public key", ours: "--peer-key-file=DIR/b.key", code: 1},
		{name: "no such peer authority", flags: "PLAIN PEER --peer-trusted-ca-file=DIR/x", say: "discovery failed|open DIR/x: no such file or directory", code: 1},
		{name: "peer client certificate without key", flags: "PLAIN PEER --peer-client-cert-file=DIR/a.pem",
			say: "discovery failed|ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: DIR/a.pem]", code: 1},
		{name: "no such peer client certificate", flags: "PLAIN PEER --peer-client-cert-file=DIR/x --peer-client-key-file=DIR/a.key", say: "discovery failed|open DIR/x: no such file or directory", code: 1},
		{name: "two rules", flags: "PLAIN PEER --peer-cert-allowed-cn=a --peer-cert-allowed-hostname=b,c",
			say: `discovery failed|AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"a\"], hostnames=[\"b\" \"c\"])`, ours: "--peer-cert-allowed-cn and --peer-cert-allowed-hostname", code: 1},
		{name: "peer certificates of no validity", flags: "PLAIN --peer-auto-tls --self-signed-cert-validity=0",
			say: "failed to get peer self-signed certs|selfSignedCertValidity is invalid,it should be greater than 0", ours: "--self-signed-cert-validity", code: 1},
		{name: "unknown cipher", flags: "PLAIN PEER --cipher-suites=foo", say: `discovery failed|unexpected TLS cipher suite \"foo\"`, ours: "--cipher-suites", code: 1},
		{name: "ciphers without TLS 1.2", flags: "PLAIN PEER --cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 --tls-min-version=TLS1.3",
			say: "failed to verify flags|cipher suites cannot be configured when only TLS1.3 is enabled", ours: "lower --tls-min-version", code: 1},
		{name: "unknown version", flags: "PLAIN PEER --tls-min-version=TLS1.1", say: `failed to verify flags|unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)`, ours: "--tls-min-version", code: 1},
		{name: "no version left", flags: "PLAIN PEER --tls-min-version=TLS1.3 --tls-max-version=TLS1.2",
			say: "failed to verify flags|min version (TLS1.3) is greater than max version (TLS1.2)", ours: "--tls-min-version and --tls-max-version", code: 1},
		{name: "missing peer revocation list", flags: "PEER CLIENT --peer-trusted-ca-file=DIR/ca.pem --peer-crl-file=DIR/x", ours: "", code: runs},

		{name: "https clients without certificate", flags: "PEER", say: "discovery failed|TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:|with HTTPS scheme", ours: "or --auto-tls", code: 1},
		{name: "certificate without key", flags: "PEER --cert-file=DIR/a.pem", say: "listener failed|KeyFile and CertFile must both be present[key: , cert: DIR/a.pem]", code: 1},
		{name: "no such certificate", flags: "PEER --cert-file=DIR/x --key-file=DIR/a.key", say: "listener failed|open DIR/x: no such file or directory", code: 1},
		{name: "key of another certificate", flags: "PEER --cert-file=DIR/a.pem --key-file=DIR/b.key",
			say: "listener failed|tls: private key does not match public key", ours: "--key-file=DIR/b.key", code: 1},
		{name: "no such authority", flags: "PEER CLIENT --trusted-ca-file=DIR/x", say: "listener failed|open DIR/x: no such file or directory", code: 1},
		{name: "certificates of no validity", flags: "PEER --auto-tls --self-signed-cert-validity=0",
			say: "failed to get client self-signed certs|selfSignedCertValidity is invalid,it should be greater than 0", ours: "--self-signed-cert-validity", code: 1},
		{name: "one port for gRPC and for HTTP", flags: "PEER CLIENT --listen-client-http-urls=https://ADDR",
			say: "discovery failed|cannot bind both --listen-client-urls and --listen-client-http-urls on the same url https://", code: 1},
		{name: "https metrics without certificate", flags: "PEER --listen-client-urls=http://ADDR --listen-metrics-urls=https://127.0.0.1:0",
			say: "discovery failed|client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url", ours: "--listen-metrics-urls=https://127.0.0.1:", code: 1},
		{name: "ciphers without those of HTTP/2", flags: "PEER CLIENT --cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA --tls-max-version=TLS1.2",
			say: "listener failed|http2: TLSConfig.CipherSuites is missing an HTTP/2-required AES_128_GCM_SHA256 cipher", code: 1},
		{name: "missing revocation list", flags: "PEER CLIENT --trusted-ca-file=DIR/ca.pem --client-crl-file=DIR/x", code: runs},
		{name: "files that are not used", flags: "PEER --listen-client-urls=http://ADDR --cert-file=DIR/x --key-file=DIR/x --trusted-ca-file=DIR/x", code: runs},

		// Ours is stricter: etcd starts and refuses every client.
		{name: "authority without certificate", flags: "PEER CLIENT --trusted-ca-file=DIR/bad", ours: "listener failed|--trusted-ca-file=DIR/bad: no certificate in the file", code: 1, real: runs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, program := range []string{etcd, real} {
				s := newSite(t)
				s.files.Put("ca.pem", ca.PEM)
				s.files.Put("bad", []byte("text"))
				s.files.PutPair("a", ca.Issue("a"))
				s.files.PutPair("b", other.Issue("b"))
				m := s.members(program)[0]
				expand := strings.NewReplacer("DIR", s.files.Path, "ADDR", m.client, "PLAIN", "--listen-client-urls=http://"+m.client,
					"PEER", "--peer-cert-file="+s.files.File("a.pem")+" --peer-key-file="+s.files.File("a.key"),
					"CLIENT", "--cert-file="+s.files.File("a.pem")+" --key-file="+s.files.File("a.key"))
				m.flags = strings.Fields(expand.Replace(expand.Replace(tt.flags)))
				m.start()
				want := tt.code
				if program == real && tt.real != 0 {
					want = tt.real
				}
				if want == runs {
					child.Eventually(t, limit, "the member serves", func() error {
						if !m.p.Running() {
							t.Fatalf("%s has ended:\n%s", program, m.p.Tail(5))
						}
						if !strings.Contains(m.p.Output(), "ready to serve client requests") {
							return errNotReady
						}
						return nil
					})
					m.p.Kill()
					continue
				}
				if code := m.p.Wait(t, limit); code != want {
					t.Errorf("%s: exit code %d, want %d", program, code, want)
				}
				reasons := child.Reasons(m.p.Output())
				said := strings.Join(reasons, "\n")
				texts := strings.Split(tt.say, "|")
				if program == etcd {
					// Real etcd reports this whatever the reason.
					texts[0] = strings.Replace(texts[0], "discovery failed", "failed to start etcd", 1)
					texts = append(texts, strings.Split(tt.ours, "|")...)
					if len(reasons) != 1 {
						t.Errorf("%d lines give a reason, want 1", len(reasons))
					}
				}
				for _, text := range texts {
					if !strings.Contains(said, expand.Replace(text)) {
						t.Errorf("%s: no %q in:\n%s", program, expand.Replace(text), said)
					}
				}
				if program == etcd && !strings.Contains(tt.name, "HTTP/2") {
					if left, _ := filepath.Glob(filepath.Join(s.dir, "m0.etcd", "*")); len(left) > 0 {
						t.Errorf("left %v", left)
					}
				}
			}
		})
	}
}

var errNotReady = errorText("not ready")

type errorText string

func (e errorText) Error() string { return string(e) }

// A broken revocation list refuses all clients until it is repaired.
func TestMissingRevocationList(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ca := pki.NewCA("ca")
	s.files.Put("ca.pem", ca.PEM)
	m := s.members(etcd)[0]
	s.files.PutPair("m0", ca.Issue("m0"))
	m.flags = append(s.tlsFlags("m0"), "--client-crl-file="+s.files.File("crl"))
	m.start()
	child.Eventually(t, limit, "the member serves", func() error {
		if !strings.Contains(m.p.Output(), "ready to serve client requests") {
			return errNotReady
		}
		return nil
	})
	pair := ca.Issue("client")
	if got, err := get("https://"+m.client+"/health", pki.Client(ca.PEM, &pair), false); err == nil {
		t.Errorf("let in without a list: %s", got)
	}
	if !strings.Contains(m.p.Output(), s.files.File("crl")) {
		t.Error("the log does not name the list")
	}
	s.files.Put("crl", ca.Revoke())
	m.waitReady(pki.Client(ca.PEM, &pair))
}
