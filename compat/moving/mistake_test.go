package moving

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// fails starts a member whose program must exit by itself, and returns its log.
func fails(t *testing.T, m *harness.Member, binary string) string {
	t.Helper()
	from := logSize(t, m)
	must(t, m.SetBinary(binary))
	must(t, m.Restart())
	select {
	case <-m.Exited():
	case <-withLimit(t).Done():
		t.Fatalf("%s runs on the directory:\n%s", filepath.Base(binary), m.LogTail(20))
	}
	b, err := os.ReadFile(m.LogPath())
	must(t, err)
	return string(b[from:])
}

// Starting etcd on a directory of ours that was not handed over never yields a member with a part of the data:
// no release starts, its log names the way, and nothing has changed.
func TestEtcdStartedByMistake(t *testing.T) {
	t.Parallel()
	m := start(t, etcd)
	fill(t, m, 300)
	want := look(t, m, 0)
	file := filepath.Join(t.TempDir(), "s.db")
	done(t, etcdctl, "--endpoints="+m.ClientURL(), "snapshot", "save", file)
	end(t, m, true)
	refused := func(m *harness.Member) {
		t.Helper()
		before := child.Look(t, m.DataDir())
		for _, release := range []string{real35, real36, real37} {
			out := fails(t, m, release)
			if !strings.Contains(out, "first_run_etcdutl_migrate_--to-etcd") || !strings.Contains(out, "member/snap/db") {
				t.Errorf("%s does not say what to do:\n%s", filepath.Base(release), m.LogTail(10))
			}
		}
		if diff := before.Changed(child.Look(t, m.DataDir())); diff != "" {
			t.Errorf("the directory has changed:\n%s", diff)
		}
		become(t, m, etcd)
	}
	refused(m)
	same(t, "ours again", look(t, m, 0), want)
	end(t, m, false)
	back(t, m)
	become(t, m, real37)
	same(t, "handed over", look(t, m, 0), want)
	if b, err := os.ReadFile(m.LogPath()); err != nil || strings.Contains(string(b[strings.LastIndex(string(b), "starting an etcd server"):]), "failed to remove temp file") {
		t.Errorf("what kept etcd out is still there, %v", err)
	}

	// A log elsewhere, which etcd is not told about: it would found a cluster.
	wal := "--wal-dir=" + filepath.Join(t.TempDir(), "wal")
	elsewhere := start(t, etcd, wal)
	write(t, elsewhere, "k", "v")
	end(t, elsewhere, false)
	elsewhere.SetArgs()
	before := child.Look(t, elsewhere.DataDir())
	fails(t, elsewhere, real37)
	if diff := before.Changed(child.Look(t, elsewhere.DataDir())); diff != "" {
		t.Errorf("without --wal-dir the directory has changed:\n%s", diff)
	}
	elsewhere.SetArgs(wal)
	become(t, elsewhere, etcd)
	if v, _, err := child.Dial(t, elsewhere.ClientAddr()).GetWithin(limit, "k"); v != "v" {
		t.Errorf("k is %q, %v", v, err)
	}

	// One that was restored and has never run: its log has nothing of its data.
	restored := restoreTo(t, file)
	refused(restored)
	got := look(t, restored, want.Rev)
	got.Members, got.Users, want.Users = want.Members, "", ""
	same(t, "restored", got, want)
}

// restoreTo creates a directory of a single member from a snapshot file.
func restoreTo(t *testing.T, file string) *harness.Member {
	t.Helper()
	dir := t.TempDir()
	addrs, err := harness.FreeAddrs(2)
	must(t, err)
	cluster := "m0=http://" + addrs[1]
	done(t, etcdutl, "snapshot", "restore", file, "--data-dir", filepath.Join(dir, "m0.etcd"), "--name", "m0", "--initial-cluster-token=harness",
		"--initial-cluster", cluster, "--initial-advertise-peer-urls=http://"+addrs[1])
	m, err := harness.Start(harness.Config{Binary: etcd, Dir: dir, Name: "m0", ClientAddr: addrs[0], PeerAddr: addrs[1], InitialCluster: cluster})
	must(t, err)
	t.Cleanup(func() { m.Kill() })
	must(t, m.Kill()) // killed at once: it may have done nothing
	return m
}

// Where nothing stopped etcd (a directory that an earlier version has left, or whose marker was removed), etcd
// does what it can with the log. Ours notices, continues with its own store and the log, which has everything
// written meanwhile, and keeps etcd's files.
func TestEtcdRanByMistake(t *testing.T) {
	t.Parallel()
	for _, release := range []string{real35, real36, real37} {
		m := start(t, etcd)
		fill(t, m, 300)
		want := look(t, m, 0)
		end(t, m, release == real37)
		guards, err := filepath.Glob(filepath.Join(m.DataDir(), "member/snap/*"))
		must(t, err)
		for _, g := range guards {
			must(t, os.RemoveAll(g))
		}
		if release == real37 {
			become(t, m, real37)
			want.Rev = write(t, m, "written", "meanwhile")
			end(t, m, true)
		} else {
			fails(t, m, release) // it has replayed a part when it reaches the cluster's version
		}
		from := logSize(t, m)
		become(t, m, etcd)
		if !logged(t, m, from, "which was not handed over to it; going on with our store") {
			t.Errorf("%s: no word of it:\n%s", filepath.Base(release), m.LogTail(20))
		}
		if release == real37 {
			if v, _, err := child.Dial(t, m.ClientAddr()).GetWithin(limit, "written"); v != "meanwhile" {
				t.Errorf("written meanwhile: %q, %v", v, err)
			}
		} else {
			same(t, filepath.Base(release), look(t, m, 0), want)
		}
		if kept, err := filepath.Glob(filepath.Join(m.DataDir(), "member/snap.etcd-*/db")); err != nil || len(kept) != 1 {
			t.Errorf("%s: etcd's files are kept in %q, %v", filepath.Base(release), kept, err)
		}
		end(t, m, false)
		out := fails(t, m, release) // kept out again
		if !strings.Contains(out, "first_run_etcdutl_migrate") {
			t.Errorf("%s is not kept out:\n%s", filepath.Base(release), m.LogTail(10))
		}
	}
}
