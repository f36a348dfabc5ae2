package setup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"quorate/compat/child"
)

// The defaults that old guides state start a member: all of them together, as flags and as an environment, and
// each of them alone. The ports that they name are those of a machine of its own.
func TestClassicDefaults(t *testing.T) {
	if !child.Isolated(t, *required, "-etcd="+etcd, "-etcdctl="+etcdctl, "-etcdutl="+etcdutl) {
		return
	}
	child.Must(t, "ip", "link", "set", "lo", "up")
	text, err := os.ReadFile("../../internal/config/testdata/classic.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all, environ []string
	for l := range strings.Lines(string(text)) {
		if l = strings.TrimSpace(l); strings.HasPrefix(l, "--") {
			all = append(all, l)
			name, value, _ := strings.Cut(strings.TrimPrefix(l, "--"), "=")
			environ = append(environ, "ETCD_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="+value)
		}
	}
	serves(t, "all flags", all, nil)
	serves(t, "the environment", nil, environ)
	for _, arg := range all {
		args := []string{arg}
		if value, ok := strings.CutPrefix(arg, "--listen-client-urls"); ok {
			args = append(args, "--advertise-client-urls"+value) // every etcd wants it together with that one
		}
		serves(t, arg, args, nil)
	}
}

// serves starts a member in an empty directory, waits until it serves clients, and stops it.
func serves(t *testing.T, what string, args, environ []string) {
	t.Helper()
	p := child.Start(t, child.Config{Program: etcd, Dir: filepath.Join(t.TempDir(), "m"), Args: args, Env: environ})
	defer p.Kill()
	child.Eventually(t, limit, what, func() error {
		if strings.Contains(p.Output(), "ready to serve client requests") {
			return nil
		}
		if !p.Running() {
			t.Fatalf("%s: ended with %d:\n%s", what, p.Code(), p.Tail(5))
		}
		return fmt.Errorf("not said yet")
	})
}
