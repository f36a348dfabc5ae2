package moving

import (
	"path/filepath"
	"strings"
	"testing"

	"quorate/compat/harness"
)

// unflushed keeps a store of ours from being written to its disk before the member is killed.
const unflushed = "--backend-batch-interval=1h"

// A directory that was taken over from an older etcd is in a cluster of version 3.7, even if only the log says so
// after a kill -9: the older etcd would not start on it.
func TestRaisedAndKilled(t *testing.T) {
	for release, c := range map[string]struct{ version, way string }{
		"etcd36": {"3.6", "run 'etcdctl downgrade enable 3.6' on the running cluster first"},
		"etcd35": {"3.5", "make a copy with 'etcdutl backup'"},
	} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			m := start(t, *binaries[release], unflushed)
			fill(t, m, 300)
			end(t, m, false)
			become(t, m, etcd)
			version(t, m, "3.7", false)
			write(t, m, "written", "by us")
			want := look(t, m, 0)
			end(t, m, true)
			r := tool(t, etcdutl, "migrate", "--to-etcd", "--target-version", c.version, "--data-dir", m.DataDir())
			if r.code != 1 || !strings.Contains(r.stderr, "the cluster's version is 3.7") || !strings.Contains(r.stderr, c.way) {
				t.Errorf("back to %s: code %d, %s%s", c.version, r.code, r.stdout, r.stderr)
			}
			if release == "etcd35" { // the way that the message names
				copied(t, m, want)
			}
			back(t, m)
			become(t, m, real37)
			same(t, "on etcd 3.7", look(t, m, 0), want)
			end(t, m, false)
		})
	}
}

// copied makes a copy of a directory for etcd 3.5, and starts that on it, twice.
func copied(t *testing.T, m *harness.Member, want state) {
	t.Helper()
	to := t.TempDir()
	done(t, etcdutl, "backup", "--data-dir", m.DataDir(), "--backup-dir", filepath.Join(to, "m0.etcd"))
	n, err := harness.StartSingle(withLimit(t), harness.Config{Binary: real35, Dir: to, Args: []string{"--force-new-cluster"}})
	must(t, err)
	t.Cleanup(func() { n.Kill() })
	end(t, n, false)
	n.SetArgs()
	become(t, n, real35)
	got := look(t, n, want.Rev)
	got.Members = want.Members // another member, of another cluster
	same(t, "on etcd 3.5", got, want)
	end(t, n, false)
}

// A cluster is downgraded and its member killed, with both in the log only. Etcd 3.6 starts on the directory, also
// a second time, and etcd's own downgrade goes on from there to 3.5.
func TestLoweredAndKilled(t *testing.T) {
	t.Parallel()
	m := start(t, etcd, unflushed)
	fill(t, m, 300)
	version(t, m, "3.7", false)
	end(t, m, false)
	become(t, m, etcd)
	done(t, etcdctl, "--endpoints="+m.ClientURL(), "downgrade", "enable", "3.6")
	version(t, m, "3.6", true)
	write(t, m, "written", "by us")
	want := look(t, m, 0)
	end(t, m, true)
	copied(t, m, want) // the copy is of no downgrade
	back(t, m, "--target-version=3.6")
	for range 2 {
		become(t, m, real36)
		same(t, "on etcd 3.6", look(t, m, want.Rev), want)
		version(t, m, "3.6", false)
		end(t, m, true)
	}
	become(t, m, real36)
	done(t, realctl, "--endpoints="+m.ClientURL(), "downgrade", "enable", "3.5")
	version(t, m, "3.5", true)
	end(t, m, false)
	become(t, m, real35)
	same(t, "on etcd 3.5", look(t, m, want.Rev), want)
}

// As long as a member of etcd 3.5 keeps the version of the cluster at 3.5, the others can go back to that in place.
func TestBackTo35(t *testing.T) {
	t.Parallel()
	cl, err := harness.StartCluster(withLimit(t), t.TempDir(), []string{real35, real35, real35})
	must(t, err)
	t.Cleanup(cl.Kill)
	fill(t, cl.Members[0], 300)
	for i, m := range cl.Members[1:] {
		end(t, m, false)
		become(t, m, etcd)
		version(t, m, "3.5", false)
		hashes(t, m.Name()+" ours", cl.Members)
		end(t, m, i == 1)
		write(t, cl.Members[0], "while away", m.Name())
		back(t, m, "--target-version=3.5")
		become(t, m, real35)
		hashes(t, m.Name()+" etcd's again", cl.Members)
	}
}
