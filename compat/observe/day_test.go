package observe

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// day is what happens to a cluster over its life, as far as logs show it. Where a line comes only a while after
// its event, the day waits for it.
type day struct {
	t       *testing.T
	program string
	ctx     context.Context
	all     []*harness.Member // of the cluster, and those that were in it
}

var dayArgs = []string{"--log-level=info", "--snapshot-count=50", "--snapshot-catchup-entries=10", "--quota-backend-bytes=33554432",
	"--bootstrap-defrag-threshold-megabytes=1000", "--heartbeat-interval=100", "--election-timeout=1000", "--downgrade-check-time=1s"}

// ctl runs etcdctl against member i and returns its output.
func (d *day) ctl(i int, command string) string {
	d.t.Helper()
	cmd := exec.CommandContext(d.ctx, "../bin/etcdctl37", append([]string{"--endpoints", d.all[i].ClientAddr(), "--command-timeout", "30s"}, strings.Fields(command)...)...)
	out, _ := cmd.CombinedOutput() // some are expected to fail
	return string(out)
}

// must is a command that succeeds, though perhaps not immediately: the leader requires connections to the others
// for a while before the membership changes.
func (d *day) must(i int, command, want string) {
	d.t.Helper()
	child.Eventually(d.t, 60*time.Second, command, func() error {
		if out := d.ctl(i, command); !strings.Contains(out, want) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// says causes something and waits until the members' logs show it.
func (d *day) says(members []*harness.Member, event func(), messages ...string) {
	d.t.Helper()
	before := map[*harness.Member]map[string]int{}
	for _, m := range members {
		before[m] = counts(d.t, m.LogPath())
	}
	event()
	for _, m := range members {
		child.Eventually(d.t, 60*time.Second, fmt.Sprintf("%s: %s says %q", d.program, m.Name(), messages), func() error {
			now := counts(d.t, m.LogPath())
			for _, msg := range messages {
				if now[msg] <= before[m][msg] {
					return fmt.Errorf("no %q yet; running: %t, it says last:\n%s", msg, m.Running(), m.LogTail(3))
				}
			}
			return nil
		})
	}
}

func (d *day) leader() int {
	d.t.Helper()
	var at int
	child.Eventually(d.t, 60*time.Second, "a leader", func() error {
		for i, m := range d.all {
			if !m.Running() {
				continue
			}
			c, err := dial(m.ClientAddr())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(d.ctx, 5*time.Second)
			leads, err := c.isLeader(ctx)
			cancel()
			c.close()
			if err == nil && leads {
				at = i
				return nil
			}
		}
		return fmt.Errorf("none yet")
	})
	return at
}

func (d *day) get(i int, path string) string {
	resp, err := web.Get(d.all[i].ClientURL() + path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// version waits until the cluster has reached a version.
func (d *day) version(i int, want string) {
	d.t.Helper()
	child.Eventually(d.t, 60*time.Second, "cluster version "+want, func() error {
		if body := d.get(i, "/version"); !strings.Contains(body, `"etcdcluster":"`+want+`"`) {
			return fmt.Errorf("%s", body)
		}
		return nil
	})
}

func (d *day) memberID(i int, name string) string {
	for l := range strings.Lines(d.ctl(i, "member list")) {
		if words := strings.Split(l, ", "); len(words) > 2 && words[2] == name {
			return words[0]
		}
	}
	return ""
}

func (d *day) puts(i, n int) {
	c, err := dial(d.all[i].ClientAddr())
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.close()
	for k := range n {
		if _, err := c.kv.Put(d.ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", k), Value: []byte("v")}); err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d *day) restart(m *harness.Member) {
	d.t.Helper()
	if err := m.Restart(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *day) stop(m *harness.Member) {
	d.t.Helper()
	if err := m.Stop(d.ctx); err != nil {
		d.t.Fatal(err)
	}
}

func (d *day) ready(m *harness.Member) {
	d.t.Helper()
	if err := m.WaitReady(d.ctx); err != nil {
		d.t.Fatalf("%s: %v\n%s", d.program, err, m.LogTail(5))
	}
}

// live goes through the whole day and returns everything logged.
func live(t *testing.T, program string) lines {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cluster, err := harness.StartCluster(ctx, t.TempDir(), []string{program, program, program}, dayArgs...)
	if err != nil {
		t.Fatal(err)
	}
	d := &day{t: t, program: program, ctx: ctx, all: slices.Clone(cluster.Members)}
	defer func() {
		for _, m := range d.all {
			m.Kill()
		}
	}()
	for _, part := range []struct {
		name string
		live func()
	}{{"morning", d.morning}, {"coming and going", d.comingAndGoing}, {"without", d.without}, {"users", d.users}, {"space", d.space},
		{"downgrade", d.downgrade}, {"night", d.night}} {
		start := time.Now()
		part.live()
		t.Logf("%s took %v", part.name, time.Since(start).Round(time.Millisecond))
	}
	all := lines{}
	for _, m := range d.all {
		all.read(t, m.LogPath())
	}
	return all
}

// morning writes, makes a backup, and changes the leader.
func (d *day) morning() {
	lead := d.leader()
	d.puts(lead, 200)
	d.ctl(lead, "snapshot save "+filepath.Join(d.t.TempDir(), "backup.db"))
	d.says(d.all[lead:lead+1], func() { d.ctl(lead, "move-leader "+d.memberID(lead, d.all[(lead+1)%3].Name())) }, "leadership transfer finished")
}

// comingAndGoing adds a member as a learner, promotes it, changes its URLs, removes it, and starts it once more.
func (d *day) comingAndGoing() {
	lead := d.leader()
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		d.t.Fatal(err)
	}
	d.must(lead, "member add m3 --learner --peer-urls=http://"+addrs[1], "added")
	id, initial := "", "m3=http://"+addrs[1]
	for _, m := range d.all {
		initial += "," + m.Name() + "=" + m.PeerURL()
	}
	for l := range strings.Lines(d.ctl(lead, "member list")) {
		if words := strings.Split(l, ", "); len(words) > 2 && words[1] == "unstarted" {
			id = words[0]
		}
	}
	d.ctl(lead, "member promote "+id) // it has not been started
	m3, err := harness.Start(harness.Config{Binary: d.program, Name: "m3", Dir: d.t.TempDir(), ClientAddr: addrs[0], PeerAddr: addrs[1],
		InitialCluster: initial, ClusterState: "existing", Args: dayArgs})
	if err != nil {
		d.t.Fatal(err)
	}
	d.all = append(d.all, m3)
	d.puts(lead, 20)
	d.must(lead, "member promote "+id, "promoted")
	d.ready(m3)
	d.ctl(lead, "member update "+id+" --peer-urls=http://"+addrs[1]+",http://localhost:"+strings.Split(addrs[1], ":")[1])
	d.ctl(lead, "member remove "+id)
	<-m3.Exited()
	d.restart(m3)
	<-m3.Exited()
}

// without stops one member, then another, and restarts them: one catches up from the log, one by a snapshot.
func (d *day) without() {
	lead := d.leader()
	one, other := (lead+1)%3, (lead+2)%3
	otherID := d.memberID(lead, d.all[other].Name())
	d.says(d.all[lead:lead+1], func() {
		d.all[one].Kill()
		d.puts(lead, 200)
	}, "lost TCP streaming connection with remote peer", "peer became inactive (message send to peer failed)", "prober detected unhealthy status",
		"failed to reach the peer URL", "failed to get version")
	d.ctl(lead, "member add m4 --peer-urls=http://127.0.0.1:1") // both would leave the cluster without a quorum
	d.ctl(lead, "member remove "+otherID)
	reading, enough := context.WithCancel(d.ctx)
	defer enough()
	d.says(d.all[lead:lead+1], func() {
		go d.read(reading, lead)
		d.says(d.all[lead:lead+1], func() { d.all[other].Kill() }, "raft.node: ID lost leader ID at term ID")
		child.Eventually(d.t, limit, "no leader", func() error {
			if body := d.get(lead, "/health"); !strings.Contains(body, "NO LEADER") {
				return fmt.Errorf("%s", body)
			}
			return nil
		})
	}, "waiting for ReadIndex response took too long, retrying", "timed out waiting for read index response (local node might have slow network)",
		"serving /health false; no leader", "/health error")
	enough()
	d.restart(d.all[other])
	d.ready(d.all[other])
	d.restart(d.all[one])
	d.ready(d.all[one])
	d.stop(d.all[other])
	d.restart(d.all[other])
	d.ready(d.all[other])
}

// read reads one key repeatedly: the first reads that cannot be answered wait until they time out.
func (d *day) read(ctx context.Context, i int) {
	c, err := dial(d.all[i].ClientAddr())
	if err != nil {
		return // says reports what is missing
	}
	defer c.close()
	for ctx.Err() == nil {
		_, _ = c.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k1")})
		time.Sleep(10 * time.Millisecond) // not all of the CPU
	}
}

func (d *day) users() {
	lead := d.leader()
	for _, c := range []string{"auth enable", "user add root:r", "role add root", "user grant-role root root", "user grant-role root root", "user add a:a", "role add ra",
		"role grant-permission ra read k", "user grant-role a ra", "user grant-role b ra", "auth enable", "--user root:r auth enable", "--user a:wrong get k1", "--user root:r get k1",
		"--user root:r user delete root", "--user root:r user revoke-role root root", "--user root:r role delete root",
		"--user root:r user passwd a --interactive=false", "--user root:r role revoke-permission ra k", "--user root:r user revoke-role a ra", "--user root:r role delete ra",
		"--user root:r user delete a", "--user root:r auth disable", "auth disable"} {
		d.ctl(lead, c)
	}
}

// space compacts history, exhausts the space quota, and frees space again.
func (d *day) space() {
	lead := d.leader()
	d.ctl(lead, "compact 100")
	d.ctl(lead, "defrag")
	c, err := dial(d.all[lead].ClientAddr())
	if err != nil {
		d.t.Fatal(err)
	}
	big, noise := make([]byte, 1<<20), rand.NewChaCha8([32]byte{}) // which does not compress
	for err = nil; err == nil; {
		noise.Read(big)
		_, err = c.kv.Put(d.ctx, &pb.PutRequest{Key: []byte("big"), Value: big})
	}
	c.close()
	d.must(lead, "alarm list", "NOSPACE")
	d.get(lead, "/health")
	d.ctl(lead, "alarm disarm")
}

func (d *day) downgrade() {
	lead := d.leader()
	d.ctl(lead, "downgrade validate 3.6")
	d.ctl(lead, "downgrade enable 3.5") // too far
	d.says(d.all[:3], func() { d.ctl(lead, "downgrade enable 3.6") }, "updated cluster version")
	d.says(d.all[lead:lead+1], func() {}, "remotes server has mismatching etcd version")
	d.version(lead, "3.6.0")
	d.ctl(lead, "downgrade cancel")
	d.version(lead, "3.7.0")
}

// night stops all members, those that do not lead first.
func (d *day) night() {
	lead := d.leader()
	for i := 1; i <= 3; i++ {
		d.stop(d.all[(lead+i)%3])
	}
}
