package moving

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// A backup of a directory, of etcd 3.5 or of Quorate, made by our tools or by etcdctl 3.5, has the data of both
// APIs when a server of either kind starts on it with --force-new-cluster.
func TestBackup(t *testing.T) {
	etcdctl35, err := filepath.Abs("../bin/etcdctl35")
	must(t, err)
	for _, c := range []struct {
		name, source string
		args         []string
		tool         string // etcdctl with ETCDCTL_API=2; empty: etcdutl
		v3           bool
	}{
		{"of etcd 3.5 by etcdctl 3.5", "etcd35", nil, etcdctl35, true},
		{"of etcd 3.5 by our etcdctl", "etcd35", nil, etcdctl, true},
		{"of etcd 3.5", "etcd35", nil, "", true},
		{"of etcd 3.5 with snap files", "etcd35", []string{"--snapshot-count=5"}, "", true},
		{"of etcd 3.5 without v3", "etcd35", nil, "", false},
		{"of ours", "", nil, "", true},
		{"of ours without v3, by our etcdctl", "", nil, etcdctl, false},
		{"of ours without v3", "", nil, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := etcd
			if c.source != "" {
				source = *binaries[c.source]
			}
			m := start(t, source, append([]string{"--enable-v2"}, c.args...)...)
			v2(t, m, "PUT", "/dir/a", value("1"))
			v2(t, m, "PUT", "/dir/b", value("2"))
			v2(t, m, "DELETE", "/dir/b", nil)
			fill(t, m, 200)
			want := look(t, m, 0)
			end(t, m, false)
			before := child.Look(t, m.DataDir())
			for _, by := range []string{real35, etcd} {
				to := t.TempDir()
				args := []string{"backup", "--data-dir", m.DataDir(), "--backup-dir", filepath.Join(to, "m0.etcd"), fmt.Sprintf("--with-v3=%v", c.v3)}
				if c.tool != "" {
					done(t, "/usr/bin/env", append([]string{"ETCDCTL_API=2", c.tool}, args...)...)
				} else {
					done(t, etcdutl, args...)
				}
				n, err := harness.StartSingle(withLimit(t), harness.Config{Binary: by, Dir: to, Args: []string{"--enable-v2", "--force-new-cluster"}})
				must(t, err)
				t.Cleanup(func() { n.Kill() })
				if a := v2(t, n, "GET", "/dir?recursive=true", nil); !strings.Contains(a.Body, `"key":"/dir/a","value":"1"`) || strings.Contains(a.Body, "/dir/b") {
					t.Errorf("%s has %s", filepath.Base(by), a.Body)
				}
				if c.v3 {
					got := look(t, n, want.Rev)
					if strings.Contains(got.Members, "use-flag") || by == etcd && !strings.Contains(got.Members, n.PeerURL()) { // etcd uses localhost:2380
						t.Errorf("%s: members %s", filepath.Base(by), got.Members)
					}
					got.Members = want.Members
					same(t, filepath.Base(by), got, want)
				} else if got := look(t, n, 0); got.Count != 0 {
					t.Errorf("%s has %d keys without --with-v3", filepath.Base(by), got.Count)
				}
				write(t, n, "goes", "on")
				v2(t, n, "PUT", "/goes", value("on"))
				end(t, n, false)
				n.SetArgs("--enable-v2")
				become(t, n, etcd)
				if v := v2(t, n, "GET", "/dir/a", nil); v.Status != 200 {
					t.Errorf("after a restart: %+v", v)
				}
				end(t, n, false)
			}
			if diff := before.Changed(child.Look(t, m.DataDir())); diff != "" && c.tool != etcdctl35 {
				t.Errorf("the source has changed:\n%s", diff)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		m := start(t, etcd)
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "full/member/snap/x"), 0o700))
		for _, c := range []struct {
			want string
			args []string
		}{
			{`required flag(s) "backup-dir", "data-dir" not set`, nil},
			{"no such file or directory", []string{"--data-dir", dir, "--backup-dir", filepath.Join(dir, "to")}},
			{"timed out waiting to acquire lock on", []string{"--data-dir", m.DataDir(), "--backup-dir", filepath.Join(dir, "to")}},
			{"failed creating backup snapshot dir: expected", []string{"--data-dir", m.DataDir(), "--backup-dir", filepath.Join(dir, "full")}},
		} {
			if r := tool(t, etcdutl, append([]string{"backup"}, c.args...)...); r.code != 1 || !strings.Contains(r.stderr, c.want) {
				t.Errorf("backup %q: code %d, %s", c.args, r.code, r.stderr)
			}
		}
	})
}
