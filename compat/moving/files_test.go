package moving

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// equal runs both tools with the same arguments: standard output, exit code and, if it failed, the line with the
// reason must be the same.
func equal(t *testing.T, args ...string) result {
	t.Helper()
	a, b := tool(t, etcdutl, args...), tool(t, realutl, args...)
	if a.stdout != b.stdout || a.code != b.code || why(a) != why(b) {
		t.Errorf("etcdutl %q: code %d, %q\n%s\nreal etcdutl: code %d, %q\n%s", args, a.code, why(a), a.stdout, b.code, why(b), b.stdout)
	}
	return a
}

// why is the line of an error.
func why(r result) string {
	for line := range strings.Lines(r.stderr) {
		if strings.HasPrefix(line, "Error: ") {
			return line
		}
	}
	return ""
}

// aside copies a file: real etcdutl's hashkv writes to the file it reads.
func aside(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	to := filepath.Join(t.TempDir(), filepath.Base(file))
	must(t, os.WriteFile(to, b, 0o600))
	return to
}

// describe compares the two tools' output about one file, in every format.
func describe(t *testing.T, file string) {
	t.Helper()
	for _, format := range []string{"simple", "json", "fields", "table", "protobuf", "nonsense"} {
		equal(t, "snapshot", "status", file, "-w", format)
		a, b := tool(t, etcdutl, "hashkv", file, "-w", format), tool(t, realutl, "hashkv", aside(t, file), "-w", format)
		if a.stdout != b.stdout || a.code != b.code || why(a) != why(b) {
			t.Errorf("hashkv -w %s: %+v, real %+v", format, a, b)
		}
	}
}

// restored runs binary on a directory that a tool restored.
func restored(t *testing.T, utl, binary, file string, args ...string) *harness.Member {
	t.Helper()
	addrs, err := harness.FreeAddrs(2)
	must(t, err)
	dir := t.TempDir()
	done(t, utl, append([]string{"snapshot", "restore", file, "--data-dir", filepath.Join(dir, "m0.etcd"), "--name=m0",
		"--initial-cluster=m0=http://localhost:2380", "--initial-advertise-peer-urls=http://localhost:2380"}, args...)...)
	m, err := harness.Start(harness.Config{Binary: binary, Dir: dir, ClientAddr: addrs[0], PeerAddr: addrs[1],
		AdvertiseClientURL: "http://localhost:2379", AdvertisePeerURL: "http://localhost:2380"})
	must(t, err)
	t.Cleanup(func() { m.Kill() })
	must(t, m.WaitReady(withLimit(t)))
	return m
}

// Snapshot files can be moved both ways, and the tools report the same about them.
func TestSnapshotFiles(t *testing.T) {
	for _, c := range []struct{ name, server, ctl string }{{"saved from ours", "", ""}, {"saved from real etcd", "etcd37", "etcdctl37"}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server, ctl := etcd, etcdctl
			if c.server != "" {
				server, ctl = *binaries[c.server], *binaries[c.ctl]
			}
			m := start(t, server)
			fill(t, m, 1000)
			want := look(t, m, 0)
			file := filepath.Join(t.TempDir(), "backup.db")
			out := done(t, ctl, "--endpoints="+m.ClientURL(), "snapshot", "save", file)
			if want := "Snapshot saved at " + file + "\nServer version 3.7.0\n"; out != want {
				t.Errorf("snapshot save says %q, want %q", out, want)
			}
			end(t, m, false)
			describe(t, file)

			ours := restored(t, etcdutl, etcd, file)
			theirs := restored(t, realutl, real37, file)
			a, b := look(t, ours, want.Rev), look(t, theirs, want.Rev)
			same(t, "restored by both tools", a, b)
			a.Members, a.Users, want.Users = want.Members, "", ""
			same(t, "restored", a, want)

			const bump = 1000
			flags := []string{"--bump-revision", strconv.Itoa(bump), "--mark-compacted", "--initial-cluster-token=other", "--skip-hash-check"}
			ours, theirs = restored(t, etcdutl, etcd, file, flags...), restored(t, realutl, real37, file, flags...)
			for _, m := range []*harness.Member{ours, theirs} {
				r, err := child.Dial(t, m.ClientAddr()).PutWithin(limit, "bumped", "")
				must(t, err)
				if got, want := r.Header.Revision, want.Rev+bump+1; got != want {
					t.Errorf("%s: the first write has revision %d, want %d", filepath.Base(m.Binary()), got, want)
				}
				_, err = child.Dial(t, m.ClientAddr()).Range(withLimit(t), &pb.RangeRequest{Key: []byte("a"), Revision: want.Rev + bump - 1})
				if err == nil || !strings.Contains(err.Error(), "required revision has been compacted") {
					t.Errorf("%s: a read below the mark: %v", filepath.Base(m.Binary()), err)
				}
			}
			a, b = look(t, ours, 0), look(t, theirs, 0)
			same(t, "restored with a raised revision", a, b)

			// Our tool reports the same about our directories as the server did.
			end(t, ours, false)
			simple := strings.Fields(done(t, etcdutl, "hashkv", ours.DataDir()))
			if got, want := strings.TrimSuffix(simple[0], ","), strconv.FormatUint(uint64(a.Hash), 10); got != want {
				t.Errorf("hashkv of the directory: %s, the server said %s", got, want)
			}
			done(t, etcdutl, "defrag", "--data-dir", ours.DataDir())
			status := strings.Split(strings.TrimSpace(done(t, etcdutl, "snapshot", "status", ours.DataDir())), ", ")
			if len(status) != 5 || status[1] != strconv.FormatInt(a.Rev, 10) || status[4] != "3.7.0" {
				t.Errorf("status of the directory: %q", status)
			}
			become(t, ours, etcd)
			same(t, "after defrag", look(t, ours, 0), a)
		})
	}
}

// Three members restored from one file form a cluster with the ids that real etcdutl gives them.
func TestRestoreCluster(t *testing.T) {
	t.Parallel()
	m := start(t, real37)
	fill(t, m, 500)
	want := look(t, m, 0)
	file := filepath.Join(t.TempDir(), "backup.db")
	done(t, etcdctl, "--endpoints="+m.ClientURL(), "snapshot", "save", file)
	end(t, m, false)

	dir := t.TempDir()
	addrs, err := harness.FreeAddrs(6)
	must(t, err)
	var initial []string
	for i := range 3 {
		initial = append(initial, "m"+strconv.Itoa(i)+"=http://"+addrs[2*i+1])
	}
	var ms []*harness.Member
	for i := range 3 {
		name := "m" + strconv.Itoa(i)
		utl, binary := etcdutl, etcd
		if i == 1 {
			utl, binary = realutl, real37
		}
		done(t, utl, "snapshot", "restore", file, "--data-dir", filepath.Join(dir, name+".etcd"), "--name", name, "--initial-cluster-token=harness",
			"--initial-cluster", strings.Join(initial, ","), "--initial-advertise-peer-urls=http://"+addrs[2*i+1])
		m, err := harness.Start(harness.Config{Binary: binary, Dir: dir, Name: name, ClientAddr: addrs[2*i], PeerAddr: addrs[2*i+1],
			InitialCluster: strings.Join(initial, ",")})
		must(t, err)
		t.Cleanup(func() { m.Kill() })
		ms = append(ms, m)
	}
	for _, m := range ms {
		must(t, m.WaitReady(withLimit(t)))
	}
	hashes(t, "restored", ms)
	got := look(t, ms[0], want.Rev)
	got.Members, got.Users, want.Users = want.Members, "", ""
	same(t, "restored", got, want)
}

// Wrong command lines get the same answer from both tools.
func TestMessages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	full, file, short := filepath.Join(dir, "full"), filepath.Join(dir, "file.db"), filepath.Join(dir, "short.db")
	must(t, os.MkdirAll(filepath.Join(full, "member"), 0o700))
	must(t, os.WriteFile(file, make([]byte, 8192+32), 0o600))
	must(t, os.WriteFile(short, make([]byte, 8192), 0o600))
	nowhere := filepath.Join(dir, "nowhere")
	for _, args := range [][]string{
		{"version"}, {"ver"},
		{"frob"}, {"version", "--frob"},
		{"snapshot", "status"}, {"snapshot", "status", nowhere}, {"snapshot", "status", nowhere, "-w", "json"},
		{"hashkv"}, {"hashkv", nowhere},
		{"snapshot", "restore"}, {"snapshot", "restore", nowhere, "--data-dir", nowhere + ".etcd"},
		{"snapshot", "restore", file, "--data-dir", full},
		{"snapshot", "restore", file, "--data-dir", nowhere + "1", "--wal-dir", full},
		{"snapshot", "restore", file, "--data-dir", nowhere + "2"},
		{"snapshot", "restore", short, "--data-dir", nowhere + "3"},
		{"snapshot", "restore", file, "--bump-revision", "5"}, {"snapshot", "restore", file, "--mark-compacted"},
		{"snapshot", "restore", file, "--name", "other", "--data-dir", nowhere + "4"},
		{"snapshot", "restore", file, "--initial-advertise-peer-urls", "http://127.0.0.1:1", "--data-dir", nowhere + "5"},
		{"snapshot", "restore", file, "--initial-advertise-peer-urls", "nonsense", "--data-dir", nowhere + "6"},
		{"snapshot", "restore", file, "--initial-cluster", "default=http://localhost:2380,a=http://localhost:2380", "--data-dir", nowhere + "7"},
		{"defrag"}, {"defrag", "--data-dir", nowhere},
		{"migrate"}, {"migrate", "--data-dir", nowhere}, {"migrate", "--data-dir", nowhere, "--target-version", "3.6"},
		{"migrate", "--data-dir", nowhere, "--target-version", "3"}, {"migrate", "--data-dir", nowhere, "--target-version", "3.4"},
	} {
		for _, left := range []string{"1", "2", "3", "4", "5", "6", "7"} {
			must(t, os.RemoveAll(nowhere+left))
		}
		a := tool(t, etcdutl, args...)
		for _, left := range []string{"1", "2", "3", "4", "5", "6", "7"} {
			must(t, os.RemoveAll(nowhere+left))
		}
		b := tool(t, realutl, args...)
		if a.stdout != b.stdout || a.code != b.code || why(a) != why(b) {
			t.Errorf("etcdutl %q: code %d, %q\n%s\nreal etcdutl: code %d, %q\n%s", args, a.code, why(a), a.stdout, b.code, why(b), b.stdout)
		}
	}
}

// Our tool changes the storage version of a directory, ours or etcd's, as etcd's tool changes that of etcd's:
// the same refusals for every target.
func TestStorageVersion(t *testing.T) {
	t.Parallel()
	ours, theirs := start(t, etcd), start(t, real37)
	for _, m := range []*harness.Member{ours, theirs} {
		fill(t, m, 100)
		end(t, m, false)
	}
	etcds := filepath.Join(t.TempDir(), "etcds") // the same, for our tool
	done(t, "cp", "-r", theirs.DataDir(), etcds)
	forced := false
	all := func(want int, args ...string) {
		t.Helper()
		b := tool(t, realutl, append([]string{"migrate", "--data-dir", theirs.DataDir()}, args...)...)
		for _, dir := range []string{ours.DataDir(), etcds} {
			a := tool(t, etcdutl, append([]string{"migrate", "--data-dir", dir}, args...)...)
			if a.code != want || b.code != want || a.stdout != b.stdout || why(a) != why(b) || said(a) != said(b) {
				t.Errorf("migrate %q of %s: code %d, %q, %q\nreal: code %d, %q, %q", args, dir, a.code, why(a), said(a), b.code, why(b), said(b))
			}
			if forced = forced || args[len(args)-1] == "--force"; forced {
				continue // ours accepts what the cluster's version allows
			}
			r := status(t, etcdutl, dir)
			if w := status(t, realutl, filepath.Join(theirs.DataDir(), "member/snap/db")); r != w {
				t.Errorf("after migrate %q %s has the storage version %q, etcd's %q", args, dir, r, w)
			}
		}
	}
	all(0, "--target-version", "3.7")
	all(1, "--target-version", "3.8")
	all(1, "--target-version", "4.0")
	all(128, "--target-version", "3.4")
	all(128, "--target-version", "3.6.0")
	all(128, "--target-version", "3.x")
	all(128, "--target-version", "-3.6")
	all(0, "--target-version", "3.6")
	all(0, "--target-version", "3.6")
	all(0, "--target-version", "3.5")
	all(1, "--target-version", "3.9")
	all(0, "--target-version", "3.7")
	all(0, "--target-version", "3.9", "--force")
	all(1, "--target-version", "3.8")
	all(0, "--target-version", "3.5", "--force")
	all(0, "--target-version", "3.7")
	for _, dir := range []string{ours.DataDir(), etcds, theirs.DataDir()} {
		must(t, os.Rename(filepath.Join(dir, "member/wal"), filepath.Join(dir, "member/aside")))
	}
	all(0, "--target-version", "3.7") // no need to read the log
	for _, dir := range []string{ours.DataDir(), etcds, theirs.DataDir()} {
		if r := tool(t, map[bool]string{true: realutl, false: etcdutl}[dir == theirs.DataDir()], "migrate", "--data-dir", dir, "--target-version", "3.6"); r.code != 1 ||
			!strings.HasPrefix(why(r), "Error: failed to get the lastest snapshot: ") {
			t.Errorf("%s without a log: code %d, %s", dir, r.code, why(r))
		}
		must(t, os.Rename(filepath.Join(dir, "member/aside"), filepath.Join(dir, "member/wal")))
	}
	become(t, ours, etcd)
	end(t, ours, false)
	if r := tool(t, etcdutl, "migrate", "--to-etcd", "--target-version", "3.6", "--data-dir", ours.DataDir()); r.code != 1 || !strings.Contains(r.stderr, "etcdctl downgrade enable 3.6") {
		t.Errorf("to etcd 3.6 from a cluster of version 3.7: %+v", r)
	}

	// defrag of an etcd directory leaves its contents unchanged.
	must(t, theirs.Restart())
	must(t, theirs.WaitReady(withLimit(t)))
	want := look(t, theirs, 0)
	r := tool(t, etcdutl, "defrag", "--data-dir", theirs.DataDir(), "--timeout", "200ms")
	if r.code != 1 || !strings.Contains(r.stderr, "in use by another process") {
		t.Errorf("defrag of a running etcd's directory: %+v", r)
	}
	end(t, theirs, false)
	if r := tool(t, etcdutl, "defrag", "--data-dir", theirs.DataDir()); r.code != 0 || !strings.Contains(said(r), "finished defragmenting directory") {
		t.Errorf("defrag of etcd's directory: %+v", r)
	}
	must(t, theirs.Restart())
	must(t, theirs.WaitReady(withLimit(t)))
	same(t, "after our defrag", look(t, theirs, 0), want)
}

// said is the messages of a tool's log lines.
func said(r result) string {
	var out []string
	for line := range strings.Lines(r.stderr) {
		if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) >= 4 && !strings.Contains(f[3], ".go:") { // those of the database have a name in front
			out = append(out, f[1]+" "+f[3])
		}
	}
	return strings.Join(out, "; ")
}

// status is the storage version that snapshot status prints.
func status(t *testing.T, program, path string) string {
	t.Helper()
	f := strings.Split(strings.TrimSpace(done(t, program, "snapshot", "status", path)), ", ")
	if len(f) < 5 {
		return ""
	}
	return f[4]
}
