package moving

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// added adds a member to the cluster of via and starts it in dir.
func added(t testing.TB, via *harness.Member, name, binary, dir string) *harness.Member {
	t.Helper()
	addrs, err := harness.FreeAddrs(2)
	must(t, err)
	c := child.Dial(t, via.ClientAddr())
	var r *pb.MemberAddResponse
	child.Eventually(t, limit, "add "+name, func() (err error) {
		r, err = c.Cluster.MemberAdd(withLimit(t), &pb.MemberAddRequest{PeerURLs: []string{"http://" + addrs[1]}})
		return err
	})
	var initial []string
	for _, x := range r.Members {
		n := x.Name
		if x.ID == r.Member.ID {
			n = name
		}
		for _, u := range x.PeerURLs {
			initial = append(initial, n+"="+u)
		}
	}
	m, err := harness.Start(harness.Config{Binary: binary, Dir: dir, Name: name, ClientAddr: addrs[0], PeerAddr: addrs[1],
		InitialCluster: strings.Join(initial, ","), ClusterState: "existing"})
	must(t, err)
	t.Cleanup(func() { m.Kill() })
	must(t, m.WaitReady(withLimit(t)))
	return m
}

var (
	seedFlag  = flag.Uint64("seed", 1, "first seed of the orders")
	seedsFlag = flag.Int("seeds", 3, "how many seeds")
	stepsFlag = flag.Int("steps", 8, "steps of each order")
)

// order is a cluster that was restored and is changed step by step.
type order struct {
	*testing.T
	rng    *rand.Rand
	dir    string
	ms     []*harness.Member
	keys   int64 // that must be present
	n      int   // members created so far
	backup string
}

// either chooses a binary: mostly ours.
func (o *order) either() string {
	if o.rng.IntN(3) == 0 {
		return real37
	}
	return etcd
}

// restore creates a cluster of one from the snapshot file.
func (o *order) restore() {
	o.Helper()
	for _, m := range o.ms {
		must(o, m.Kill())
	}
	o.n++
	name := fmt.Sprintf("r%d", o.n)
	addrs, err := harness.FreeAddrs(2)
	must(o, err)
	utl, first := etcdutl, o.either()
	if o.rng.IntN(2) == 0 {
		utl = realutl
	}
	if utl == etcdutl {
		first = etcd // etcd does not start on a directory of ours
	}
	dir := filepath.Join(o.dir, name)
	must(o, os.MkdirAll(dir, 0o700))
	args := []string{"snapshot", "restore", o.backup, "--data-dir", filepath.Join(dir, name+".etcd"), "--name", name, "--initial-cluster-token=harness",
		"--initial-cluster", name + "=http://" + addrs[1], "--initial-advertise-peer-urls=http://" + addrs[1]}
	if o.rng.IntN(3) == 0 {
		args = append(args, "--bump-revision=1000", "--mark-compacted")
	}
	o.Logf("restore %s by %s, run by %s", name, filepath.Base(utl), filepath.Base(first))
	done(o, utl, args...)
	m, err := harness.Start(harness.Config{Binary: first, Dir: dir, Name: name, ClientAddr: addrs[0], PeerAddr: addrs[1]})
	must(o, err)
	o.Cleanup(func() { m.Kill() })
	must(o, m.WaitReady(withLimit(o)))
	o.ms = []*harness.Member{m}
	o.write(m)
	if first != etcd && o.rng.IntN(2) == 0 {
		end(o, m, o.rng.IntN(2) == 0)
		become(o, m, etcd)
	}
}

func (o *order) write(m *harness.Member) {
	o.keys++
	write(o, m, fmt.Sprintf("written/%d", o.keys), "v")
}

// step makes one change.
func (o *order) step() {
	o.Helper()
	m := o.ms[o.rng.IntN(len(o.ms))]
	switch k := o.rng.IntN(8); {
	case len(o.ms) == 1 && k < 6, k < 3 && len(o.ms) < 4:
		o.n++
		name, binary := fmt.Sprintf("a%d", o.n), o.either()
		o.Logf("add %s, %s", name, filepath.Base(binary))
		if dir := filepath.Join(o.dir, name); binary == etcd && o.rng.IntN(3) == 0 {
			o.ms = append(o.ms, joined(o, m, name, dir))
		} else {
			must(o, os.MkdirAll(dir, 0o700))
			o.ms = append(o.ms, added(o, m, name, binary, dir))
		}
	case k < 5 && len(o.ms) > 1:
		via := o.ms[o.rng.IntN(len(o.ms))]
		o.Logf("remove %s by %s", m.Name(), via.Name())
		o.remove(via, m)
	case k < 6:
		kill := o.rng.IntN(2) == 0
		o.Logf("restart %s, kill %v", m.Name(), kill)
		end(o, m, kill)
		must(o, m.Restart())
		must(o, m.WaitReady(withLimit(o)))
	case k < 7:
		o.Logf("%s goes over to the other", m.Name())
		end(o, m, m.Binary() == real37 && o.rng.IntN(2) == 0)
		if m.Binary() == real37 {
			become(o, m, etcd)
		} else {
			back(o, m)
			become(o, m, real37)
		}
	default:
		o.Logf("force a new cluster of %s", m.Name())
		for _, x := range o.ms {
			must(o, x.Kill())
		}
		must(o, m.SetBinary(etcd))
		m.SetArgs("--force-new-cluster")
		must(o, m.Restart())
		must(o, m.WaitReady(withLimit(o)))
		end(o, m, false)
		m.SetArgs()
		must(o, m.Restart())
		must(o, m.WaitReady(withLimit(o)))
		o.ms = []*harness.Member{m}
	}
}

func (o *order) remove(via, m *harness.Member) {
	o.Helper()
	c := child.Dial(o, via.ClientAddr())
	child.Eventually(o, limit, "remove "+m.Name(), func() error {
		if !m.Running() {
			return nil // before it could answer
		}
		l, err := c.Cluster.MemberList(withLimit(o), &pb.MemberListRequest{})
		if err != nil {
			return err
		}
		for _, x := range l.Members {
			if x.Name == m.Name() {
				_, err := c.Cluster.MemberRemove(withLimit(o), &pb.MemberRemoveRequest{ID: x.ID})
				return err
			}
		}
		return nil
	})
	o.ms = slices.DeleteFunc(o.ms, func(x *harness.Member) bool { return x == m })
	select {
	case <-m.Exited():
	case <-time.After(5 * time.Second): // whether a removed member exits by itself is not tested here
		must(o, m.Kill())
	}
}

// check compares what all members hold with what was written.
func (o *order) check(what string) {
	o.Helper()
	var want state
	for i, m := range o.ms {
		o.write(m)
		got := look(o, m, 0)
		if i == 0 {
			want = got
		}
		if got.Count != o.keys {
			o.Errorf("%s: %s has %d keys, want %d", what, m.Name(), got.Count, o.keys)
		}
	}
	for _, m := range o.ms {
		got := look(o, m, want.Rev)
		got.Members, want.Members = "", "" // a new one may not have published its name everywhere yet
		same(o, what+": "+m.Name()+" against "+o.ms[0].Name(), got, want)
	}
}

// joined starts a member of ours that adds itself, waits until it may vote, and restarts it like the others.
func joined(t testing.TB, via *harness.Member, name, dir string) *harness.Member {
	t.Helper()
	addrs, err := harness.FreeAddrs(2)
	must(t, err)
	must(t, os.MkdirAll(dir, 0o700))
	client, peer := "http://"+addrs[0], "http://"+addrs[1]
	p := child.Start(t, child.Config{Program: etcd, Dir: dir, Args: []string{"--join=" + via.ClientURL(), "--name=" + name, "--data-dir=" + filepath.Join(dir, name+".etcd"),
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client, "--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer}})
	c := child.Dial(t, via.ClientAddr())
	child.Eventually(t, limit, name+" votes", func() error {
		l, err := c.Cluster.MemberList(withLimit(t), &pb.MemberListRequest{})
		if err != nil {
			return err
		}
		for _, x := range l.Members {
			if x.Name == name && !x.IsLearner {
				return nil
			}
		}
		return fmt.Errorf("%v\n%s", l.Members, p.Output())
	})
	p.Kill()
	p.Wait(t, limit)
	m, err := harness.Start(harness.Config{Binary: etcd, Dir: dir, Name: name, ClientAddr: addrs[0], PeerAddr: addrs[1]})
	must(t, err)
	t.Cleanup(func() { m.Kill() })
	must(t, m.WaitReady(withLimit(t)))
	return m
}

// A cluster is restored, by either tool, and members of either kind are added, removed, restarted, moved to the
// other kind and left alone, in an order that the seed chooses. After each step all hold the same, which is
// everything that was written.
func TestOrders(t *testing.T) {
	src := start(t, real37)
	fill(t, src, 300)
	file := filepath.Join(t.TempDir(), "backup.db")
	done(t, etcdctl, "--endpoints="+src.ClientURL(), "snapshot", "save", file)
	keys := look(t, src, 0).Count
	end(t, src, false)
	for s := *seedFlag; s < *seedFlag+uint64(*seedsFlag); s++ {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			t.Parallel()
			o := &order{T: t, rng: rand.New(rand.NewPCG(s, 5)), dir: t.TempDir(), keys: keys, backup: file}
			t.Cleanup(func() {
				for _, m := range o.ms {
					if t.Failed() {
						t.Logf("%s:\n%s", m.Name(), m.LogTail(15))
					}
				}
			})
			o.restore()
			for i := range *stepsFlag {
				o.step()
				if o.check(fmt.Sprintf("step %d", i)); t.Failed() {
					t.Fatalf("replay with -args -seed=%d -seeds=1", s)
				}
			}
		})
	}
}
