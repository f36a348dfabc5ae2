package secure

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"quorate/compat/harness"
	"quorate/compat/pki"
)

// Our etcdctl reports why a request got no answer, whichever server it called.
func TestCauses(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]string{"ours": etcd, "etcd 3.7": real} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			causes(t, server)
		})
	}
}

func causes(t *testing.T, server string) {
	s := newSite(t)
	ca, foreign := pki.NewCA("ca"), pki.NewCA("foreign")
	s.files.Put("ca.pem", ca.PEM)
	s.files.Put("foreign.pem", foreign.PEM)
	s.files.PutPair("m0", ca.Issue("m0"))
	s.files.PutPair("client", ca.Issue("client"))
	s.files.PutPair("other", foreign.Issue("other"))
	s.files.PutPair("expired", ca.Expired("client"))
	m := s.members(server)[0]
	m.flags = s.tlsFlags("m0")
	m.start()
	pair := ca.Issue("test")
	m.waitReady(pki.Client(ca.PEM, &pair))
	plain, err := harness.StartSingle(t.Context(), harness.Config{Binary: server, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plain.Kill() })

	const (
		certs = " --cacert=DIR/ca.pem --cert=DIR/client.pem --key=DIR/client.key"
		slow  = "this one takes longer than the"
	)
	for _, tt := range []struct{ name, flags, cause string }{
		{"no certificate", "--endpoints=https://ADDR --cacert=DIR/ca.pem", "give it with --cert and --key"},
		{"another authority's certificate", "--endpoints=https://ADDR --cacert=DIR/ca.pem --cert=DIR/other.pem --key=DIR/other.key", "does not trust the CA that signed the certificate in --cert"},
		{"expired certificate", "--endpoints=https://ADDR --cacert=DIR/ca.pem --cert=DIR/expired.pem --key=DIR/expired.key", "the certificate in --cert has expired"},
		{"another authority", "--endpoints=https://ADDR --cacert=DIR/foreign.pem --cert=DIR/client.pem --key=DIR/client.key", "give the CA that signed the server's certificate with --cacert"},
		{"without TLS", "--endpoints=http://ADDR", "needs an https:// endpoint"},
		{"with TLS", "--endpoints=https://PLAIN", "needs an http:// endpoint"},
		{"port of peers with TLS", "--endpoints=https://PEER" + certs, "is a peer URL"},
		{"port of peers", "--endpoints=http://PLAINPEER", "is a peer URL"},
		{"slow call with TLS", "--endpoints=https://ADDR --command-timeout=1ns" + certs, slow},
		{"slow call", "--endpoints=http://PLAIN --command-timeout=1ns", slow},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(tt.flags, "timeout") {
				tt.flags += " --dial-timeout=1s --command-timeout=1s"
			}
			expand := strings.NewReplacer("DIR", s.files.Path, "ADDR", m.client, "PLAINPEER", strings.TrimPrefix(plain.PeerURL(), "http://"), "PLAIN", plain.ClientAddr(), "PEER", m.peer)
			cmd := exec.CommandContext(t.Context(), etcdctl, append(strings.Fields(expand.Replace(tt.flags)), "put", "k", "v")...)
			cmd.Env = os.Environ()
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), tt.cause) {
				t.Errorf("%v, want %q in:\n%s", err, tt.cause, out)
			}
		})
	}
}
