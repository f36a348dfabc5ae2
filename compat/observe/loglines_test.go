package observe

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// lines are the messages of a log above debug, with the fields that came with each of them.
type lines map[string]map[string]bool

// ids are what differs from run to run in a message: ids, terms, indexes, lists of them.
var ids = regexp.MustCompile(`\b[0-9a-f]{15,16}\b(,ID)*|\(ID( ID)*\)|\b\d+\b`)

// read adds what a member has logged.
func (l lines) read(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 4<<20)
	for s.Scan() {
		var fields map[string]any
		if json.Unmarshal(s.Bytes(), &fields) != nil {
			continue
		}
		msg, _ := fields["msg"].(string)
		caller := fmt.Sprint(fields["caller"])
		if fields["level"] == "debug" || strings.Contains(caller, "zapgrpc") || strings.Contains(msg, "bbolt") || strings.HasPrefix(msg, "Opening db file") {
			continue // of libraries
		}
		msg = ids.ReplaceAllString(msg, "ID")
		if l[msg] == nil {
			l[msg] = map[string]bool{}
		}
		for name := range fields {
			l[msg][name] = true
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

// day is what happens to a cluster in its life, as far as logs tell of it.
type day struct {
	t       *testing.T
	program string
	ctx     context.Context
	cluster *harness.Cluster
	all     []*harness.Member // of the cluster, and those that were in it
}

var dayArgs = []string{"--log-level=info", "--snapshot-count=50", "--snapshot-catchup-entries=10", "--quota-backend-bytes=33554432",
	"--bootstrap-defrag-threshold-megabytes=1000", "--heartbeat-interval=100", "--election-timeout=1000"}

// ctl runs etcdctl against member i and returns what it prints.
func (d *day) ctl(i int, command string) string {
	d.t.Helper()
	cmd := exec.CommandContext(d.ctx, "../bin/etcdctl37", append([]string{"--endpoints", d.all[i].ClientAddr(), "--command-timeout", "30s"}, strings.Fields(command)...)...)
	out, _ := cmd.CombinedOutput() // some are to fail
	return string(out)
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

// version waits until the cluster has come to a version.
func (d *day) version(i int, want string) {
	d.t.Helper()
	child.Eventually(d.t, 60*time.Second, "cluster version "+want, func() error {
		resp, err := http.Get(d.all[i].ClientURL() + "/version")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(body), `"etcdcluster":"`+want+`"`) {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
}

func (d *day) memberID(name string) string {
	for l := range strings.Lines(d.ctl(0, "member list")) {
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

func (d *day) ready(m *harness.Member) {
	d.t.Helper()
	if err := m.WaitReady(d.ctx); err != nil {
		d.t.Fatalf("%s: %v\n%s", d.program, err, m.LogTail(5))
	}
}

// live lives it and returns all that was logged.
func live(t *testing.T, program string) lines {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cluster, err := harness.StartCluster(ctx, t.TempDir(), []string{program, program, program}, dayArgs...)
	if err != nil {
		t.Fatal(err)
	}
	d := &day{t: t, program: program, ctx: ctx, cluster: cluster, all: slices.Clone(cluster.Members)}
	defer func() {
		for _, m := range d.all {
			m.Kill()
		}
	}()
	lead := d.leader()
	d.puts(lead, 200)
	other := (lead + 1) % 3
	// A new leader.
	d.ctl(lead, "move-leader "+d.memberID(d.all[other].Name()))
	lead = d.leader()
	// A member comes as a learner, is promoted, gets other URLs, and goes.
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		t.Fatal(err)
	}
	child.Eventually(t, 60*time.Second, "a member is added", func() error { // the leader wants to have known the others for a while
		if out := d.ctl(lead, "member add m3 --learner --peer-urls=http://"+addrs[1]); !strings.Contains(out, "added") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	initial := "m3=http://" + addrs[1]
	for _, m := range d.all {
		initial += "," + m.Name() + "=" + m.PeerURL()
	}
	m3, err := harness.Start(harness.Config{Binary: program, Name: "m3", Dir: t.TempDir(), ClientAddr: addrs[0], PeerAddr: addrs[1],
		InitialCluster: initial, ClusterState: "existing", Args: dayArgs})
	if err != nil {
		t.Fatal(err)
	}
	d.all = append(d.all, m3)
	d.puts(lead, 20)
	id := ""
	child.Eventually(t, 60*time.Second, "the learner tells its name", func() error {
		if id = d.memberID("m3"); id == "" {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	child.Eventually(t, 60*time.Second, "the learner is promoted", func() error {
		if out := d.ctl(lead, "member promote "+id); !strings.Contains(out, "promoted") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	d.ready(m3)
	d.ctl(lead, "member update "+id+" --peer-urls=http://"+addrs[1]+",http://localhost:"+strings.Split(addrs[1], ":")[1])
	d.ctl(lead, "member remove "+id)
	<-m3.Exited()
	// One is killed and comes back; one is stopped and comes back to a snapshot.
	follower := (lead + 1) % 3
	d.all[follower].Kill()
	d.puts(lead, 200)
	time.Sleep(6 * time.Second) // for what is told of a member that is away
	if err := d.all[follower].Restart(); err != nil {
		t.Fatal(err)
	}
	d.ready(d.all[follower])
	if err := d.all[follower].Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.all[follower].Restart(); err != nil {
		t.Fatal(err)
	}
	d.ready(d.all[follower])
	// Users.
	for _, c := range []string{"user add root:r", "role add root", "user grant-role root root", "user add a:a", "role add ra", "role grant-permission ra read k", "user grant-role a ra",
		"auth enable", "--user a:wrong get k1", "--user root:r get k1", "--user root:r auth disable"} {
		d.ctl(lead, c)
	}
	// History and space.
	d.ctl(lead, "compact 100")
	d.ctl(lead, "defrag")
	c, err := dial(d.all[lead].ClientAddr())
	if err != nil {
		t.Fatal(err)
	}
	for range 60 {
		if _, err := c.kv.Put(ctx, &pb.PutRequest{Key: []byte("big"), Value: []byte(strings.Repeat("x", 1<<20))}); err != nil {
			break
		}
	}
	c.close()
	d.ctl(lead, "alarm list")
	d.ctl(lead, "alarm disarm")
	// Versions.
	d.ctl(lead, "downgrade validate 3.6")
	d.ctl(lead, "downgrade enable 3.6")
	d.version(lead, "3.6.0")
	d.ctl(lead, "downgrade cancel")
	d.version(lead, "3.7.0")
	// The night.
	for _, m := range cluster.Members {
		if err := m.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
	all := lines{}
	for _, m := range d.all {
		all.read(t, m.LogPath())
	}
	return all
}

// notOurs are messages of etcd that are about how it is built, not about what happens, each kind
// with its reason, and those that depend on how fast this machine is at the moment.
var notOurs = map[string][]string{
	"the backend and its loading are another engine's": {
		"recovered v3 backend", "restor(ed|ing) (alarm store|auth store|lease store|mvcc store|cluster configuration)", "restore consistentIndex", "kvstore restored",
		"clos(ed|ing) old backend file", "applySnapshot: opened snapshot backend", "Skipping snapshot backend", "Constructed a new raft snapshot from v3 state",
		"constructed a snapshot from WAL record", "compact tree index", "storing new hash", "defragmenting", "finished defragmenting directory", "saved database snapshot to disk",
		"sent database snapshot to writer", "applied incoming Raft snapshot", "skip compaction since there is an inflight snapshot", "started to purge file",
		"Cluster version downgrade detected, forcing snapshot", "updated storage version", "failed to update storage version", "Failed to detect schema version", "cluster version differs from storage version\\.",
	},
	"there is no such step or goroutine": {
		"bootstrapping (cluster|raft|storage)", "bootstrap successfully", "Bootstrapping WAL from snapshot", "(adding|added) peers from new cluster configuration",
		"remov(ing|ed) old peers from network", "cmux::serve", "(started|stopped) HTTP pipelining with remote peer", "(started|stopped) stream (reader|writer) with remote peer",
		"set message encoder", "server has stopped; stopping (cluster|storage) version's monitor", "(stopping|stopped) (in)?secure grpc server due to error",
		"setting up serving from embedded etcd failed\\.", "starting initial election tick advance",
	},
	"the end of a downgrade is told by the version of the cluster": {"The server is ready to downgrade", "remotes server has mismatching etcd version"},
	"members of etcd apply the membership twice":                   {"ignore already (added|promoted|removed|updated) member.*", "Skipped updating non-existent member in v2store", "ignored already updated member"},
	"it depends on the moment": {
		"failed to apply request",
		"/health error", "serving /health false.*", "apply request took too long", "trace", "leader failed to send out heartbeat on time.*", "failed to publish local member.*", "leadership transfer failed",
		"resolved URL Host", "rejecting member add request.*", "closed TCP streaming connection with remote peer", "skipped attributes update of removed member", "slow fdatasync",
		"waiting for ReadIndex.*", "dropped .*Raft message.*", "prober .*", "raft\\.node: .*", "ID .*", "newRaft .*", "log \\[.*", "failed to (get version|reach the peer URL)", "failed to send database snapshot",
		"failed to process Raft message", "rejected Raft message from removed member", "retry.*", "timed out .*", "ignored out-of-date read index response.*", "duplicate .*", "initialized peer connections.*", "applied? .*snapshot", "(receiv|send)(ing|ed) .*snapshot.*", "sent .*snapshot", "received and saved.*",
		"rejected stream from remote peer because it was removed", "failed to find remote peer in cluster",
	},
}

// fieldsWithout are fields of etcd's that a line of ours does without: sizes that are not known when it
// is written, and what stands elsewhere.
var fieldsWithout = regexp.MustCompile(`^(current-db-size.*|hash|current-snapshot-index|.*-size|size|bytes|error|service|took|stacktrace)$`)

// What happens in the life of a cluster is told in the same words as etcd's, with its fields.
func TestLogLines(t *testing.T) {
	t.Parallel()
	programs := bothBinaries(t)
	real, ours := live(t, programs[0]), live(t, programs[1])
	var left []*regexp.Regexp
	for _, patterns := range notOurs {
		for _, p := range patterns {
			left = append(left, regexp.MustCompile("^(?:"+p+")$"))
		}
	}
	for _, msg := range slices.Sorted(maps.Keys(real)) {
		if ours[msg] == nil {
			if !slices.ContainsFunc(left, func(r *regexp.Regexp) bool { return r.MatchString(msg) }) {
				t.Errorf("etcd says %q %v, and ours does not", msg, slices.Sorted(maps.Keys(real[msg])))
			}
			continue
		}
		for f := range real[msg] {
			if !ours[msg][f] && !fieldsWithout.MatchString(f) {
				t.Errorf("etcd's %q has the field %s, and ours has not", msg, f)
			}
		}
	}
	for _, msg := range slices.Sorted(maps.Keys(ours)) {
		if real[msg] == nil {
			t.Logf("ours alone: %s %v", msg, slices.Sorted(maps.Keys(ours[msg])))
		}
	}
	// What must be there whatever the moment.
	for _, msg := range []string{"added member", "removed member", "promote member", "updated member", "Skipping defragmentation", "enabled authentication", "saved snapshot to disk",
		"set initial cluster version", "ready to serve client requests", "published local member to cluster through raft", "leadership transfer finished"} {
		if ours[msg] == nil || real[msg] == nil {
			t.Errorf("%q: real etcd %t, ours %t", msg, real[msg] != nil, ours[msg] != nil)
		}
	}
}
