package setup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// host is a member on a loopback address of its own.
type host struct {
	name, client, peer string // addresses are host:port
	data               string
	proc               *child.Process
}

// newHosts finds free ports for members a, b, c, ... below dir.
func newHosts(t *testing.T, n int) []*host {
	t.Helper()
	addrs, err := harness.FreeAddrs(2 * n)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	hosts := make([]*host, n)
	for i := range hosts {
		name := string(rune('a' + i))
		hosts[i] = &host{name: name, client: addrs[2*i], peer: addrs[2*i+1], data: filepath.Join(dir, name)}
	}
	return hosts
}

func (h *host) start(t *testing.T, program string, more ...string) {
	t.Helper()
	h.proc = child.Start(t, child.Config{Program: program, Dir: filepath.Dir(h.data), Args: append([]string{
		"--name", h.name, "--data-dir", h.data, "--listen-client-urls", "http://" + h.client, "--listen-peer-urls", "http://" + h.peer}, more...)})
}

// found starts the first member of a cluster.
func (h *host) found(t *testing.T, program string) {
	t.Helper()
	h.start(t, program, "--advertise-client-urls", "http://"+h.client, "--initial-advertise-peer-urls", "http://"+h.peer,
		"--initial-cluster", h.name+"=http://"+h.peer)
	child.Eventually(t, limit, "the first member writes", func() error {
		_, err := child.Dial(t, h.client).PutWithin(5*time.Second, "first", h.name)
		return err
	})
}

// voters waits until the cluster of via has n voters and no learner, all started.
func voters(t *testing.T, via string, n int) {
	t.Helper()
	c := child.Dial(t, via)
	child.Eventually(t, limit, fmt.Sprintf("%d voting members", n), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		list, err := c.Cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		if err != nil {
			return err
		}
		good := 0
		for _, m := range list.Members {
			if m.Name != "" && !m.IsLearner {
				good++
			}
		}
		if good != n || len(list.Members) != n {
			return fmt.Errorf("members %v", list.Members)
		}
		return nil
	})
}

func holds(t *testing.T, addr, key, want string) {
	t.Helper()
	c := child.Dial(t, addr)
	child.Eventually(t, limit, key+" on "+addr, func() error {
		v, _, err := c.GetWithin(5*time.Second, key)
		if err == nil && v != want {
			err = fmt.Errorf("value %q", v)
		}
		return err
	})
}

// Two members join at the same time; only one can be a learner at once, so the other waits.
func TestTwoJoinAtOnce(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 3)
	h[0].found(t, etcd)
	h[1].start(t, etcd, "--join", "http://"+h[0].client)
	h[2].start(t, etcd, "--join", "http://"+h[0].client)
	voters(t, h[0].client, 3)
	for _, x := range h {
		holds(t, x.client, "first", "a")
	}
	// The founding member may go now: the others are a quorum.
	h[0].proc.Kill()
	child.Eventually(t, limit, "the others write", func() error {
		_, err := child.Dial(t, h[1].client).PutWithin(10*time.Second, "second", "b")
		return err
	})
	holds(t, h[2].client, "second", "b")
}

// A member that is killed at any step of joining is restarted with the same command line and continues from
// where it was.
func TestJoinIsKilled(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 2)
	h[0].found(t, etcd)
	for _, step := range []string{
		"joining a running cluster",                     // before anything has happened
		"added this member to the cluster as a learner", // the cluster knows it, it has no data
		"applied a configuration change",                // its log has begun
		"this member is a voting member of the cluster", // done; a start after that changes nothing
	} {
		h[1].start(t, etcd, "--join", "http://"+h[0].client)
		child.Eventually(t, limit, step, func() error {
			if strings.Contains(h[1].proc.Output(), step) {
				return nil
			}
			if !h[1].proc.Running() {
				t.Fatalf("it has ended:\n%s", h[1].proc.Tail(20))
			}
			// A step that an earlier start completed is not logged again.
			if strings.Contains(h[1].proc.Output(), "this member is a voting member of the cluster") {
				return nil
			}
			return errors.New("not yet")
		})
		h[1].proc.Kill()
	}
	h[1].start(t, etcd, "--join", "http://"+h[0].client)
	voters(t, h[0].client, 2)
	holds(t, h[1].client, "first", "a")
}

// What cannot succeed is refused in one line that says what to do.
func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 4)
	h[0].found(t, etcd)
	for i, x := range h[1:3] {
		x.start(t, etcd, "--join", "http://"+h[0].client)
		voters(t, h[0].client, i+2)
	}
	h[2].proc.Kill() // two of three are left, so the cluster goes on
	refused := func(x *host, want string, more ...string) {
		t.Helper()
		x.start(t, etcd, append([]string{"--join", "http://" + h[0].client}, more...)...)
		code := x.proc.Wait(t, limit)
		if out := strings.Join(child.Reasons(x.proc.Output()), "\n"); code != 1 || !strings.Contains(out, want) {
			t.Errorf("code %d, want 1 and %q:\n%s", code, want, out)
		}
	}
	lost := *h[2]
	lost.data += "-lost"
	refused(&lost, "has run before, but its data is not here")
	other := *h[3]
	other.name = "a"
	refused(&other, "give this member another --name")
	refused(h[3], "--join and --initial-cluster cannot be set at the same time", "--initial-cluster", "d=http://"+h[3].peer)
	// The member that was killed comes back, still with --join.
	h[2].start(t, etcd, "--join", "http://"+h[0].client)
	holds(t, h[2].client, "first", "a")
}

// A cluster of real etcd is joined the same way.
func TestJoinRealCluster(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 3)
	h[0].found(t, *realFlag)
	h[1].start(t, etcd, "--join", "http://"+h[0].client)
	voters(t, h[0].client, 2)
	h[2].start(t, etcd, "--join", "http://"+h[1].client)
	voters(t, h[0].client, 3)
	holds(t, h[2].client, "first", "a")
}

// On three machines, with only a name and the address of the first member.
func TestJoinInNamespaces(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd, "-etcdctl="+etcdctl, "-etcdutl="+etcdutl) {
		return
	}
	machines := child.NewMachines(t, 3)
	dir := t.TempDir()
	start := func(i int, args ...string) *child.Process {
		name := machines.Name(i)
		return child.Start(t, child.Config{Program: "ip", Dir: filepath.Join(dir, name),
			Args: machines.On(i, etcd, append([]string{"--name", name, "--data-dir", filepath.Join(dir, name, "data")}, args...)...)})
	}
	ip := machines.IP(1)
	start(1, "--initial-advertise-peer-urls", "http://"+ip+":2380", "--listen-peer-urls", "http://"+ip+":2380",
		"--listen-client-urls", "http://"+ip+":2379,http://127.0.0.1:2379", "--advertise-client-urls", "http://"+ip+":2379",
		"--initial-cluster", machines.Name(1)+"=http://"+ip+":2380")
	start(2, "--join", "http://"+ip+":2379")
	start(3, "--join", "http://"+ip+":2379")
	child.Eventually(t, limit, "three voting members", func() error {
		out, err := machines.Run(20*time.Second, 3, etcdctl, "member", "list")
		if err != nil || strings.Count(out, ", started, ") != 3 || strings.Count(out, ", false\n") != 3 {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
	if out, err := machines.Run(30*time.Second, 2, etcdctl, "put", "greeting", "hello"); err != nil || out != "OK\n" {
		t.Errorf("put on machine 2: %q, %v", out, err)
	}
	if out, err := machines.Run(30*time.Second, 3, etcdctl, "get", "greeting"); err != nil || out != "greeting\nhello\n" {
		t.Errorf("get on machine 3: %q, %v", out, err)
	}
}
