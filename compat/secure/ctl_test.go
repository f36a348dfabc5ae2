package secure

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"quorate/compat/pki"
)

// TestEtcdctl tries the TLS flags of etcdctl on a member that requires certificates. Real etcdctl, if present,
// must get the same results.
func TestEtcdctl(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ca, foreign := pki.NewCA("ca"), pki.NewCA("foreign")
	s.files.Put("ca.pem", ca.PEM)
	s.files.Put("foreign.pem", foreign.PEM)
	s.files.Put("bad", []byte("text"))
	s.files.PutPair("m0", ca.Issue("m0"))
	s.files.PutPair("client", ca.Issue("client"))
	s.files.PutPair("other", foreign.Issue("other"))
	m := s.members(etcd)[0]
	m.flags = append(s.tlsFlags("m0"), "--listen-client-urls=https://"+m.client+",unix://plain.sock")
	m.start()
	pair := ca.Issue("test")
	m.waitReady(pki.Client(ca.PEM, &pair))

	programs := []string{etcdctl}
	if abs, err := filepath.Abs(*realCtl); err == nil {
		if _, err := os.Stat(abs); err == nil {
			programs = append(programs, abs)
		}
	}
	const (
		certs = " --cacert=DIR/ca.pem --cert=DIR/client.pem --key=DIR/client.key"
		quick = " --dial-timeout=1s --command-timeout=1s"
	)
	for _, tt := range []struct {
		name, flags, env string
		code             int
		say              string
	}{
		{name: "all", flags: "--endpoints=https://ADDR" + certs, say: "OK"},
		{name: "no scheme", flags: "--endpoints=ADDR" + certs, say: "OK"},
		{name: "environment", flags: "--endpoints=ADDR", env: "ETCDCTL_CACERT=DIR/ca.pem ETCDCTL_CERT=DIR/client.pem ETCDCTL_KEY=DIR/client.key", say: "OK"},
		{name: "secure transport", flags: "--endpoints=ADDR --insecure-transport=false" + certs, say: "OK"},
		{name: "unverified", flags: "--endpoints=https://ADDR --insecure-skip-tls-verify --cert=DIR/client.pem --key=DIR/client.key", say: "OK"},
		{name: "socket", flags: "--endpoints=unix:" + filepath.Join(s.dir, m.name, "plain.sock"), say: "OK"},
		{name: "no authority", flags: "--endpoints=https://ADDR --cert=DIR/client.pem --key=DIR/client.key" + quick, code: 1, say: "context deadline exceeded"},
		{name: "foreign authority", flags: "--endpoints=https://ADDR --cacert=DIR/foreign.pem" + quick, code: 1, say: "context deadline exceeded"},
		{name: "no certificate", flags: "--endpoints=https://ADDR --cacert=DIR/ca.pem" + quick, code: 1, say: "context deadline exceeded"},
		{name: "foreign certificate", flags: "--endpoints=https://ADDR --cacert=DIR/ca.pem --cert=DIR/other.pem --key=DIR/other.key" + quick, code: 1, say: "context deadline exceeded"},
		{name: "without TLS", flags: "--endpoints=http://ADDR" + quick, code: 1, say: "context deadline exceeded"},
		{name: "roots of the machine", flags: "--endpoints=ADDR --insecure-transport=false" + quick, code: 1, say: "context deadline exceeded"},
		{name: "no such authority", flags: "--endpoints=https://ADDR --cacert=DIR/x", code: 128, say: "open DIR/x: no such file or directory"},
		{name: "certificate without key", flags: "--endpoints=https://ADDR --cert=DIR/client.pem", code: 128, say: "KeyFile and CertFile must both be present[key: , cert: DIR/client.pem]"},
		{name: "damaged certificate", flags: "--endpoints=https://ADDR --cert=DIR/bad --key=DIR/client.key", code: 128, say: "tls: failed to find any PEM data in certificate input"},
		{name: "empty certificate", flags: "--endpoints=https://ADDR --cert=", code: 128, say: "empty string is passed to --cert option"},
		{name: "empty key", flags: "--endpoints=https://ADDR --key=", code: 128, say: "empty string is passed to --key option"},
		{name: "empty authority", flags: "--endpoints=https://ADDR --cacert=", code: 128, say: "empty string is passed to --cacert option"},
	} {
		for _, program := range programs {
			t.Run(tt.name+"/"+filepath.Base(program), func(t *testing.T) {
				t.Parallel()
				expand := strings.NewReplacer("DIR", s.files.Path, "ADDR", m.client)
				cmd := exec.CommandContext(t.Context(), program, append(strings.Fields(expand.Replace(tt.flags)), "put", "k", "v")...)
				cmd.Env = append(os.Environ(), strings.Fields(expand.Replace(tt.env))...)
				out, err := cmd.CombinedOutput()
				code := 0
				if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
					code = exit.ExitCode()
				} else if err != nil {
					t.Fatal(err)
				}
				if code != tt.code || !strings.Contains(string(out), expand.Replace(tt.say)) {
					t.Errorf("exit code %d, want %d, with %q in:\n%s", code, tt.code, expand.Replace(tt.say), out)
				}
			})
		}
	}
}
