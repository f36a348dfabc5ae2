package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"quorate/compat/child"
)

// A cluster with the flags in use for years, on loopback addresses: the command line tool reads and writes, the
// leader is killed, the others go on, and it comes back.
func TestClassicSetUp(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, "--heartbeat-interval", "1000", "--election-timeout", "5000")
	tr.start(t)
	all := strings.Join(tr.client[:], ",")
	ctl := func(args ...string) string {
		t.Helper()
		out, err := child.Run(limit, etcdctl, append([]string{"--endpoints", all}, args...)...)
		if err != nil {
			t.Fatalf("etcdctl %v: %v: %s", args, err, out)
		}
		return out
	}
	if got := ctl("put", "greeting", "hello"); got != "OK\n" {
		t.Errorf("put prints %q", got)
	}
	if got := ctl("get", "greeting"); got != "greeting\nhello\n" {
		t.Errorf("get prints %q", got)
	}
	if got := ctl("member", "list"); strings.Count(got, "started") != 3 {
		t.Errorf("member list prints %q", got)
	}
	old, _ := tr.leader(t)
	tr.procs[old].Kill()
	rest := tr.clients[(old+1)%3]
	child.Eventually(t, limit, "the others write", func() error { _, err := rest.PutWithin(20*time.Second, "after", "kill"); return err })
	if v, _, err := rest.GetWithin(limit, "greeting"); err != nil || v != "hello" {
		t.Errorf("greeting is %q, %v", v, err)
	}
	tr.start(t, old)
	if v, _, err := tr.clients[old].GetWithin(limit, "after"); err != nil || v != "kill" {
		t.Errorf("the member that was killed has %q, %v", v, err)
	}
}

// The same in three network namespaces joined by a bridge, with the usual ports and every flag of the usual unit
// file.
func TestClassicSetUpInNamespaces(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd, "-etcdctl="+etcdctl) {
		return
	}
	machines := child.NewMachines(t, 3)
	ip := machines.IP
	dir := t.TempDir()
	var procs [4]*child.Process
	start := func(i int) {
		name := fmt.Sprintf("etcd-%d", i)
		procs[i] = child.Start(t, child.Config{Program: "ip", Dir: filepath.Join(dir, name), Args: machines.On(i, etcd,
			"--name", name, "--data-dir", filepath.Join(dir, name, "data"),
			"--initial-advertise-peer-urls", "http://"+ip(i)+":2380", "--listen-peer-urls", "http://"+ip(i)+":2380",
			"--listen-client-urls", "http://"+ip(i)+":2379,http://127.0.0.1:2379", "--advertise-client-urls", "http://"+ip(i)+":2379",
			"--initial-cluster-token", "etcd-cluster",
			"--initial-cluster", "etcd-1=http://10.0.0.1:2380,etcd-2=http://10.0.0.2:2380,etcd-3=http://10.0.0.3:2380",
			"--initial-cluster-state", "new", "--heartbeat-interval", "1000", "--election-timeout", "5000")})
	}
	for i := 1; i <= 3; i++ {
		start(i)
	}
	// As a user on machine i would run it, without any flag.
	ctl := func(i int, args ...string) (string, error) {
		return machines.Run(30*time.Second, i, etcdctl, args...)
	}
	eventually := func(i int, want string, args ...string) {
		t.Helper()
		child.Eventually(t, limit, fmt.Sprintf("etcdctl %v on machine %d", args, i), func() error {
			if out, err := ctl(i, args...); err != nil || out != want {
				return fmt.Errorf("%q, %v", out, err)
			}
			return nil
		})
	}
	eventually(1, "OK\n", "put", "greeting", "hello")
	for i := 1; i <= 3; i++ {
		eventually(i, "greeting\nhello\n", "get", "greeting")
	}
	leader := 0
	child.Eventually(t, limit, "a leader", func() error {
		for i := 1; i <= 3; i++ {
			out, err := ctl(i, "endpoint", "status")
			if f := strings.Split(out, ", "); err == nil && len(f) > 7 && contains(f, "true") == 1 {
				leader = i
				return nil
			}
		}
		return errors.New("no member leads")
	})
	procs[leader].Kill()
	other := leader%3 + 1
	eventually(other, "OK\n", "put", "after", "kill")
	start(leader)
	eventually(leader, "after\nkill\n", "get", "after")
	// A machine that is cut off serves no stale reads, and catches up when it is reconnected.
	machines.Unplug(t, other)
	third := 6 - leader - other
	eventually(third, "OK\n", "put", "apart", "yes")
	if out, err := ctl(other, "get", "apart", "--command-timeout=3s"); err == nil {
		t.Errorf("a machine that is cut off answers a linearizable read: %q", out)
	}
	machines.Plug(t, other)
	eventually(other, "apart\nyes\n", "get", "apart")
}

func contains(fields []string, want string) (n int) {
	for _, f := range fields {
		if strings.TrimSpace(f) == want {
			n++
		}
	}
	return n
}

// The service manager is notified when a member serves, and not before.
func TestReadyIsNotified(t *testing.T) {
	t.Parallel()
	// A socket's path may be about a hundred bytes long at most.
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	addr := &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unixgram"}
	socket, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	// heard returns what arrives within the given time, except the progress messages of a start.
	heard := func(within time.Duration) string {
		t.Helper()
		if err := socket.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		for {
			b := make([]byte, 4096)
			n, err := socket.Read(b)
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			if got := string(b[:n]); !strings.HasPrefix(got, "STATUS=") && !strings.HasPrefix(got, "EXTEND_TIMEOUT_USEC=") {
				return got
			}
		}
	}
	tr := newTrio(t)
	tr.config[0].Env = []string{"NOTIFY_SOCKET=" + addr.Name}
	tr.procs[0] = child.Start(t, tr.config[0])
	// A lone member cannot serve, however long it tries: it has finished its start and has asked for votes.
	child.Eventually(t, limit, "the first member asks for votes", func() error {
		if !strings.Contains(tr.procs[0].Output(), "starting a new election") {
			return errors.New("not yet")
		}
		return nil
	})
	if got := heard(100 * time.Millisecond); got != "" {
		t.Errorf("without a quorum the service manager hears %q", got)
	}
	tr.procs[1] = child.Start(t, tr.config[1])
	if got := heard(limit); got != "READY=1" {
		t.Fatalf("the service manager hears %q, want READY=1", got)
	}
	if _, err := tr.clients[0].PutWithin(10*time.Second, "k", "v"); err != nil {
		t.Errorf("a write right after READY=1: %v", err)
	}
	tr.procs[0].Signal(syscall.SIGTERM)
	if code := tr.procs[0].Wait(t, limit); code != 128+int(syscall.SIGTERM) {
		t.Errorf("exit code %d", code)
	}
}
