package moving

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// version waits until a member reports a version as that of the cluster, and knows whether a downgrade is
// enabled.
func version(t testing.TB, m *harness.Member, want string, downgrade bool) {
	t.Helper()
	c := child.Dial(t, m.ClientAddr())
	child.Eventually(t, limit, m.Name()+" is in a cluster of version "+want, func() error {
		s, err := c.Maintenance.Status(withLimit(t), &pb.StatusRequest{})
		if err != nil {
			return err
		}
		out := tool(t, "curl", "-s", m.ClientURL()+"/version").stdout
		if !strings.Contains(out, fmt.Sprintf(`"etcdcluster":"%s`, want)) || s.DowngradeInfo.GetEnabled() != downgrade {
			return fmt.Errorf("%s, downgrade %v", out, s.DowngradeInfo)
		}
		return nil
	})
}

// logged reports whether a member has logged a message since its last start.
func logged(t testing.TB, m *harness.Member, from int64, message string) bool {
	t.Helper()
	b, err := os.ReadFile(m.LogPath())
	must(t, err)
	return strings.Contains(string(b[from:]), message)
}

func logSize(t testing.TB, m *harness.Member) int64 {
	t.Helper()
	st, err := os.Stat(m.LogPath())
	must(t, err)
	return st.Size()
}

// A cluster of ours is downgraded to etcd 3.6 as etcd's documents describe: enable the downgrade, stop a member,
// start the older binary on its directory, then the next. Then it is upgraded again, in place.
func TestDowngradeInPlace(t *testing.T) {
	t.Parallel()
	cl, err := harness.StartCluster(withLimit(t), t.TempDir(), []string{etcd, etcd, etcd}, "--snapshot-count=60")
	must(t, err)
	t.Cleanup(cl.Kill)
	fill(t, cl.Members[0], 500)
	for _, m := range cl.Members {
		version(t, m, "3.7", false)
	}
	done(t, etcdctl, "--endpoints="+cl.Members[0].ClientURL(), "downgrade", "enable", "3.6")
	for _, m := range cl.Members {
		version(t, m, "3.6", true)
	}
	for i, m := range cl.Members {
		from := logSize(t, m)
		end(t, m, false)
		if !logged(t, m, from, "etcd may be started on the directory") {
			t.Fatalf("%s has left no files:\n%s", m.Name(), m.LogTail(10))
		}
		if i == 1 { // ours again: it continues with its own files
			from = logSize(t, m)
			become(t, m, etcd)
			if !logged(t, m, from, "etcd has not started on the files that were left for it") {
				t.Errorf("%s: no word of its own store:\n%s", m.Name(), m.LogTail(20))
			}
			if st, err := os.Stat(filepath.Join(m.DataDir(), "member/snap/db")); err == nil && !st.IsDir() {
				t.Error("etcd's files are still there")
			}
			hashes(t, m.Name()+" ours again", cl.Members)
			end(t, m, false)
		}
		write(t, cl.Members[(i+1)%3], "while away", m.Name())
		become(t, m, real36)
		hashes(t, m.Name()+" etcd's", cl.Members)
	}
	for _, m := range cl.Members {
		version(t, m, "3.6", false) // etcd ends the downgrade when all are there
	}
	for i := range 100 {
		write(t, cl.Members[i%3], fmt.Sprint("on etcd/", i), "v") // it makes snapshots meanwhile
	}
	for i, m := range cl.Members {
		end(t, m, i == 1)
		write(t, cl.Members[(i+1)%3], "while away", m.Name()+" again")
		from := logSize(t, m)
		become(t, m, etcd)
		if !logged(t, m, from, "etcd has run on the files that were left for it") {
			t.Errorf("%s: no word of the take-over:\n%s", m.Name(), m.LogTail(20))
		}
		hashes(t, m.Name()+" ours again", cl.Members)
	}
	for _, m := range cl.Members {
		version(t, m, "3.7", false)
		end(t, m, false)
		must(t, m.Restart())
		must(t, m.WaitReady(withLimit(t)))
		stores, err := filepath.Glob(filepath.Join(m.DataDir(), "member/store*"))
		must(t, err)
		if len(stores) != 1 {
			t.Errorf("%s has %q", m.Name(), stores)
		}
	}
	hashes(t, "at the end", cl.Members)
	addAnother(t, cl)
}

// addAnother adds a member to a cluster and compares its contents.
func addAnother(t *testing.T, cl *harness.Cluster) {
	t.Helper()
	m := added(t, cl.Members[0], fmt.Sprintf("added%d", len(cl.Members)), etcd, filepath.Dir(cl.Members[0].DataDir()))
	hashes(t, "with a new member", append(cl.Members[:len(cl.Members):len(cl.Members)], m))
}

// A downgrade that is cancelled midway, with members of each kind, some of which were killed at once: all go on,
// and a member that stops afterwards leaves no files for etcd.
func TestDowngradeCancelled(t *testing.T) {
	t.Parallel()
	cl, err := harness.StartCluster(withLimit(t), t.TempDir(), []string{etcd, etcd, etcd})
	must(t, err)
	t.Cleanup(cl.Kill)
	fill(t, cl.Members[0], 500)
	for _, m := range cl.Members {
		version(t, m, "3.7", false)
	}
	done(t, etcdctl, "--endpoints="+cl.Members[0].ClientURL(), "downgrade", "enable", "3.6")
	for _, m := range cl.Members {
		version(t, m, "3.6", true)
	}
	one, two, three := cl.Members[0], cl.Members[1], cl.Members[2]
	end(t, one, false)
	become(t, one, real36)
	end(t, two, false)
	// etcd is killed repeatedly at every stage of its start, and ours comes back.
	for i := range 6 {
		must(t, two.SetBinary(real36))
		must(t, two.Restart())
		time.Sleep(time.Duration(i*i) * 20 * time.Millisecond) // a crash at any time is intended
		must(t, two.Kill())
		write(t, one, fmt.Sprint("between/", i), "v")
		become(t, two, etcd)
		hashes(t, fmt.Sprintf("after etcd was killed, %d", i), cl.Members)
		if i%2 == 1 { // what it converted, or continued with, survives a kill too
			end(t, two, true)
			become(t, two, etcd)
		}
		end(t, two, false)
	}
	become(t, two, etcd)
	done(t, etcdctl, "--endpoints="+three.ClientURL(), "downgrade", "cancel")
	child.Eventually(t, limit, "all know of it", func() error {
		for _, m := range []*harness.Member{two, three} {
			s, err := child.Dial(t, m.ClientAddr()).Maintenance.Status(withLimit(t), &pb.StatusRequest{})
			if err != nil || s.DowngradeInfo.GetEnabled() {
				return fmt.Errorf("%s: %v, %v", m.Name(), s.GetDowngradeInfo(), err)
			}
		}
		return nil
	})
	end(t, three, false)
	if st, err := os.Stat(filepath.Join(three.DataDir(), "member/snap/db")); err == nil && !st.IsDir() {
		t.Error("files were left though the downgrade is cancelled")
	}
	become(t, three, etcd)
	end(t, one, true)
	become(t, one, etcd)
	hashes(t, "all ours again", cl.Members)
	for _, m := range cl.Members {
		version(t, m, "3.7", false)
	}
}

// The process is killed while it writes etcd's files: the next start continues with our own, and nothing of the
// attempt remains.
func TestKilledWhileLeaving(t *testing.T) {
	t.Parallel()
	m := start(t, etcd)
	fill(t, m, 4000)
	version(t, m, "3.7", false)
	done(t, etcdctl, "--endpoints="+m.ClientURL(), "downgrade", "enable", "3.6")
	version(t, m, "3.6", true)
	want := look(t, m, 0)
	for after := 2 * time.Millisecond; ; after += after/2 + time.Millisecond {
		from := logSize(t, m)
		must(t, m.Signal(syscall.SIGINT))
		child.Eventually(t, limit, "it begins to leave", func() error {
			if !logged(t, m, from, "converting the data directory for etcd") {
				return fmt.Errorf("no word of it")
			}
			return nil
		})
		select {
		case <-time.After(after):
		case <-m.Exited():
		}
		must(t, m.Kill())
		through := logged(t, m, from, "etcd may be started on the directory")
		become(t, m, etcd)
		same(t, "after a kill", look(t, m, want.Rev), want)
		for _, glob := range []string{"member/snap/*", "member/STORE.*"} {
			left, err := filepath.Glob(filepath.Join(m.DataDir(), glob))
			must(t, err)
			for _, path := range left {
				if st, err := os.Stat(path); err != nil || !st.IsDir() { // what keeps etcd from the directory
					t.Errorf("left behind: %s, %v", path, err)
				}
			}
		}
		if through {
			break
		}
	}
	end(t, m, false)
	back(t, m, "--target-version=3.6") // by hand as well
	become(t, m, real36)
	same(t, "on etcd", look(t, m, want.Rev), want)
}

// systemd is notified what a stop during a downgrade does, and asked for time.
func TestLeavingTellsSystemd(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	defer conn.Close()
	heard := make(chan string, 100)
	go func() {
		defer close(heard)
		for b := make([]byte, 4096); ; {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			heard <- string(b[:n])
		}
	}()
	m, err := harness.StartSingle(withLimit(t), harness.Config{Binary: etcd, Dir: t.TempDir(), Env: []string{"NOTIFY_SOCKET=" + socket}})
	must(t, err)
	t.Cleanup(func() { m.Kill() })
	version(t, m, "3.7", false)
	done(t, etcdctl, "--endpoints="+m.ClientURL(), "downgrade", "enable", "3.6")
	version(t, m, "3.6", true)
	end(t, m, false)
	must(t, conn.SetReadDeadline(time.Now().Add(time.Second))) // everything has been sent by now
	var all []string
	for s := range heard {
		all = append(all, s)
	}
	text := strings.Join(all, "\n--\n")
	for _, want := range []string{"READY=1", "STOPPING=1", "STATUS=writing the files of etcd 3.6", "EXTEND_TIMEOUT_USEC=", "STATUS=stopped; the directory is for etcd 3.6 or this program"} {
		if !strings.Contains(text, want) {
			t.Errorf("systemd has not heard %q:\n%s", want, text)
		}
	}
}
