package server

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// A cluster that has lost two of three members permanently continues with the third, and grows
// again.
func TestForceNewCluster(t *testing.T) {
	c := newCluster(t, 3, nil)
	want := map[string]string{}
	put := func(n *node, key, value string) {
		t.Helper()
		n.put(key, value)
		want[key] = value
	}
	for i := range 20 {
		put(c.nodes[i%3], fmt.Sprintf("k/%d", i), "before")
	}
	last := c.leader()
	id, clusterID := last.m.replica.id, last.m.ClusterID()
	var gone []*node
	for _, n := range c.nodes {
		if n != last {
			gone = append(gone, n)
			n.stop()
		}
	}
	// What it proposes now is on no other member. After a restart it cannot know that: in its
	// log it looks like entries that others have acknowledged.
	last.putAlone("uncommitted", "kept")
	want["uncommitted"] = "kept"
	last.crash()
	c.nodes = []*node{last}
	last.force = true
	last.mustStart()
	last.ready()
	check := func(n *node) {
		t.Helper()
		for key, value := range want {
			if got := n.get(key); got != value {
				t.Errorf("%s reads %s as %q, want %q", n.name, key, got, value)
			}
		}
	}
	check(last)
	put(last, "k/alone", "after")
	if last.m.replica.id != id || last.m.ClusterID() != clusterID {
		t.Errorf("member %s of cluster %s, want %s of %s", last.m.replica.id, last.m.ClusterID(), id, clusterID)
	}
	if ms := last.m.cluster.Members(); len(ms) != 1 || ms[0].ID != id {
		t.Errorf("members %v", ms)
	}

	// Leaving the flag in place changes nothing more, and neither does removing it.
	index := last.m.replica.commit.Load()
	last.stop()
	last.mustStart()
	last.ready()
	check(last)
	if got := last.m.replica.commit.Load(); got > index+10 {
		t.Errorf("the log grew from %d to %d by a restart", index, got)
	}
	last.stop()
	last.force = false
	last.mustStart()
	last.ready()

	// A member of the old cluster is told that it was removed.
	c.nodes = append(c.nodes, gone[0])
	gone[0].mustStart()
	gone[0].failed()
	gone[0].stop()
	c.nodes = []*node{last}

	for i := range 2 {
		n, _ := c.join(fmt.Sprintf("new%d", i), last, false)
		n.mustStart()
		n.ready()
		check(n)
	}
	put(c.follower(), "k/three", "again")
	c.sameHash()
}

// putAlone proposes a write that cannot be committed and waits until the log has it.
func (n *node) putAlone(key, value string) {
	n.t.Helper()
	before, _ := n.m.log.LastIndex()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.m.KV.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)}, nil); err == nil {
		n.t.Fatal("a put without a quorum")
	}
	eventually(n.t, "the log has the write", func() bool { last, _ := n.m.log.LastIndex(); return last > before })
}

// Power is lost right after the last acknowledgement. A member that is forced to continue alone
// has every write that it acknowledged, whichever member led, and however much of its log was
// truncated.
func TestForceNewClusterKeepsWhatWasAcknowledged(t *testing.T) {
	for name, x := range map[string]struct {
		size  int
		asked func(*cluster) *node
		tune  func(*Config)
	}{
		"alone":     {1, (*cluster).leader, nil},
		"leader":    {3, (*cluster).leader, nil},
		"follower":  {3, (*cluster).follower, nil},
		"truncated": {3, (*cluster).follower, func(cfg *Config) { cfg.SnapshotCount, cfg.CatchUpEntries = 10, 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, x.size, x.tune)
			n := x.asked(c)
			want := map[string]string{}
			for round := range 3 {
				var mu sync.Mutex
				var wg sync.WaitGroup
				for i := range 30 {
					wg.Go(func() {
						key := fmt.Sprintf("k/%d/%d", round, i)
						if _, err := n.m.KV.Put(background(t), &pb.PutRequest{Key: []byte(key), Value: []byte("v")}, nil); err == nil {
							mu.Lock()
							want[key] = "v"
							mu.Unlock()
						}
					})
				}
				wg.Wait()
			}
			if len(want) == 0 {
				t.Fatal("nothing was acknowledged")
			}
			n.crash()
			for _, o := range c.nodes {
				if o != n {
					o.stop()
				}
			}
			c.nodes = []*node{n}
			n.force = true
			n.mustStart()
			n.ready()
			for key, value := range want {
				if got := n.get(key); got != value {
					t.Errorf("%s is %q", key, got)
				}
			}
			if ms := n.m.cluster.Members(); len(ms) != 1 {
				t.Errorf("members %v", ms)
			}
		})
	}
}

// A removal of the survivor that may never have been agreed on does not prevent this, and the
// entries after it are retained.
func TestForceNewClusterWithUncommittedRemoval(t *testing.T) {
	c := newCluster(t, 3, nil)
	n := c.leader()
	n.put("k/before", "v")
	for _, o := range c.nodes {
		if o != n {
			o.stop()
		}
	}
	n.putAlone("k/behind", "v")
	n.crash()
	n.insertRemoval(false)
	c.nodes = []*node{n}
	n.force = true
	n.mustStart()
	n.ready()
	for _, key := range []string{"k/before", "k/behind"} {
		if got := n.get(key); got != "v" {
			t.Errorf("%s is %q", key, got)
		}
	}
	n.stop()
	n.force = false
	n.mustStart()
	n.ready()
	n.put("k/after", "v")
}

// insertRemoval appends a removal of the member to its log, as committed, or inserts it before
// the last entry, which is not known to be committed.
func (n *node) insertRemoval(committed bool) {
	n.t.Helper()
	log, err := raftlog.Open(n.fs, "data/member/wal", raftlog.Options{NoBackground: true})
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	hs := log.HardState()
	last, _ := log.LastIndex()
	next, term := last, hs.GetTerm()
	if committed {
		next++
	}
	data, err := proto.Marshal(membership.RemoveChange(n.m.replica.id))
	if err != nil {
		n.t.Fatal(err)
	}
	ents := []*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Term: new(term), Index: new(next), Data: data}}
	if last >= next {
		behind, err := log.Entries(next, last+1, 1<<20)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, e := range behind {
			ents = append(ents, &raftpb.Entry{Term: new(term), Index: new(e.GetIndex() + 1), Data: e.Data})
		}
	}
	state := &raftpb.HardState{Term: new(term), Vote: new(hs.GetVote()), Commit: new(hs.GetCommit())}
	if committed {
		state.Commit = new(next)
	}
	if err := log.Append(state, ents, true); err != nil {
		n.t.Fatal(err)
	}
}

// If only a learner is left, it becomes a voter.
func TestForceNewClusterOfLearner(t *testing.T) {
	c := newCluster(t, 1, nil)
	lead := c.nodes[0]
	lead.put("k", "v")
	n, added := c.join("learner", lead, true)
	n.mustStart()
	n.ready()
	c.sameHash()
	lead.stop()
	n.stop()
	c.nodes = []*node{n}
	n.force = true
	n.mustStart()
	n.ready()
	if got := n.get("k"); got != "v" {
		t.Errorf("k is %q", got)
	}
	if x, _ := n.m.cluster.Member(ids.Member(added.ID)); x.IsLearner || n.m.IsLearner() {
		t.Errorf("still a learner: %v", x)
	}
	n.put("k", "w")
}

// A member that has applied its own removal cannot form a new cluster.
func TestForceNewClusterOfRemovedMember(t *testing.T) {
	c := newCluster(t, 3, nil)
	n := c.leader()
	n.put("k", "v")
	c.stop()
	n.insertRemoval(true)
	n.force = true
	if err := n.start(); err == nil || !strings.Contains(err.Error(), "--force-new-cluster") || !strings.Contains(err.Error(), membership.ErrLocalRemoved.Error()) {
		t.Errorf("start of a removed member: %v", err)
	}
}
