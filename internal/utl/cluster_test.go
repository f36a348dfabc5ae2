package utl

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree is the content of every file below dir, by path.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[filepath.ToSlash(rel)] = string(b)
		info, ierr := d.Info()
		if ierr != nil {
			return ierr
		}
		if secret := strings.Contains(string(b), "PRIVATE KEY"); secret != (info.Mode().Perm() == 0o600) {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// succeed runs a command that must exit with code 0 and print nothing on standard error.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := run(args...)
	if code != 0 || stderr != "" {
		t.Fatalf("etcdutl %q: code %d, %s", args, code, stderr)
	}
	return stdout
}

func refuse(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	stdout, stderr, got := run(args...)
	if got != code || stdout != "" || !strings.Contains(stderr, want) {
		t.Errorf("etcdutl %q: code %d, want %d; standard error %q, want %q; standard output %q", args, got, code, stderr, want, stdout)
	}
}

func TestPlanIsPrinted(t *testing.T) {
	out := succeed(t, "cluster", "plan", "a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3")
	for _, want := range []string{"# --- b: /etc/systemd/system/etcd.service\n", "\n1. ", "\n6. ", "endpoint status --cluster -w table\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	refuse(t, exitBadArgs, `Error: "a": want NAME=ADDRESS`, "cluster", "plan", "a")
	refuse(t, exitBadArgs, "private keys, which do not belong on a terminal", "cluster", "plan", "a=10.0.0.1", "--tls")
	refuse(t, exitBadArgs, "--out, which was not given", "cluster", "plan", "a=10.0.0.1", "--force")
	refuse(t, exitBadArgs, "--valid is about certificates", "cluster", "plan", "a=10.0.0.1", "--valid", "3")
	refuse(t, exitBadArgs, "--client-port 0", "cluster", "plan", "a=10.0.0.1", "--client-port", "0")
}

// A second run changes no existing file without --force; with it, the authority still
// stays.
func TestPlanIsWrittenOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	three := []string{"cluster", "plan", "a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3", "--out", dir}
	if out := succeed(t, three...); !strings.HasPrefix(out, "Wrote 3 files to "+dir+".\n") || strings.Contains(out, "[Unit]") {
		t.Errorf("%s", out)
	}
	if out := succeed(t, three...); !strings.HasPrefix(out, "Wrote 0 files to "+dir+"; 3 were there already.\n") {
		t.Errorf("%s", out)
	}
	before := tree(t, dir)
	tls := append(three, "--tls")
	refuse(t, exitError, filepath.Join(dir, "hosts", "a", "etcd.service")+" exists and differs", tls...)
	if after := tree(t, dir); len(after) != len(before) {
		t.Errorf("a refused plan wrote files: %d, before %d", len(after), len(before))
	}
	succeed(t, append(tls, "--force")...)
	first := tree(t, dir)
	refuse(t, exitError, "--force replaces it", tls...)
	succeed(t, append(tls, "--force")...)
	second := tree(t, dir)
	for path, content := range first {
		changed := second[path] != content
		leaf := strings.HasSuffix(path, "member.pem") || strings.HasSuffix(path, ".key") || strings.HasSuffix(path, "client.pem")
		if want := leaf && path != "ca/ca.key"; changed != want {
			t.Errorf("%s changed: %v, want %v", path, changed, want)
		}
	}
	// A host that joins later gets a certificate of the same authority; nothing else changes.
	join := []string{"cluster", "plan", "d=10.0.0.4", "--join", "https://10.0.0.1:2379", "--tls", "--out"}
	if out := succeed(t, append(join, dir)...); !strings.HasPrefix(out, "Wrote 4 files to ") {
		t.Errorf("%s", out)
	}
	third := tree(t, dir)
	for path, content := range second {
		if third[path] != content {
			t.Errorf("%s changed", path)
		}
	}
	if third["hosts/d/pki/ca.pem"] != first["ca/ca.pem"] {
		t.Error("the new host trusts another authority")
	}
	refuse(t, exitBadArgs, "give the --out directory of the first plan", append(join, filepath.Join(dir, "elsewhere"))...)
}

// A damaged authority is never replaced.
func TestPlanKeepsAuthority(t *testing.T) {
	dir := t.TempDir()
	args := []string{"cluster", "plan", "a=10.0.0.1", "--tls", "--force", "--out", dir}
	succeed(t, args...)
	key := filepath.Join(dir, "ca", "ca.key")
	good, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, bytes.Replace(good, []byte("BEGIN"), []byte("BEGUN"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	refuse(t, exitError, key+" cannot be used", args...)
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	refuse(t, exitError, "is not complete: open "+key, args...)
	if err := os.WriteFile(key, good, 0o600); err != nil {
		t.Fatal(err)
	}
	succeed(t, args...)
}
