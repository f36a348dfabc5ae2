package server

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

// join creates a node for a new member, lets via add it to the cluster, and prepares it to
// join.
func (c *cluster) join(name string, via *node, learner bool) (*node, *pb.Member) {
	c.t.Helper()
	n := c.newNode(name)
	var added *pb.Member
	for {
		var err error
		if added, _, err = via.m.Members.MemberAdd(background(c.t), []string{n.url}, learner); err == nil {
			break
		}
		if !retried(err) {
			c.t.Fatalf("add %s: %v", name, err)
		}
	}
	n.existing, n.patience = true, patience
	for _, x := range c.nodes {
		n.initial = append(n.initial, membership.InitialMember{Name: x.name, PeerURLs: []string{x.url}})
	}
	return n, added
}

func TestLearner(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { calm(cfg); smallLog(cfg) })
	for i := range 200 { // more than the log retains: the learner starts with a snapshot
		c.nodes[0].put(fmt.Sprintf("k/%d", i), "v")
	}
	via := c.follower()
	n, added := c.join("learner", via, true)
	if !added.IsLearner {
		t.Fatalf("added %v, want a learner", added)
	}
	if _, err := via.m.Members.MemberPromote(background(t), ids.Member(added.ID)); !errors.Is(err, rpctypes.ErrGRPCLearnerNotReady) {
		t.Fatalf("promotion of a learner that has not started: %v", err)
	}
	if _, _, err := via.m.Members.MemberAdd(background(t), []string{"http://127.0.0.1:1"}, true); !errors.Is(err, rpctypes.ErrGRPCTooManyLearners) {
		t.Fatalf("second learner: %v", err)
	}
	c.clk.ahead.Add(int64(2 * time.Second)) // within a second, the same URL gives the same id
	if _, _, err := via.m.Members.MemberAdd(background(t), []string{n.url}, false); !errors.Is(err, rpctypes.ErrGRPCPeerURLExist) {
		t.Fatalf("same URL again: %v", err)
	}
	n.mustStart()
	if n.m.replica.id != ids.Member(added.ID) {
		t.Fatalf("the learner is %s, added was %x", n.m.replica.id, added.ID)
	}
	n.ready()
	if !n.m.IsLearner() {
		t.Error("the new member is no learner")
	}
	if err := c.leader().m.Maintenance.MoveLeader(background(t), n.m.replica.id); !errors.Is(err, rpctypes.ErrGRPCBadLeaderTransferee) {
		t.Errorf("leadership for a learner: %v", err)
	}
	eventually(t, "the learner is promoted", func() bool {
		_, err := c.follower().m.Members.MemberPromote(background(t), ids.Member(added.ID))
		if err != nil && !errors.Is(err, rpctypes.ErrGRPCLearnerNotReady) && !retried(err) {
			t.Fatal(err)
		}
		return err == nil
	})
	if _, err := via.m.Members.MemberPromote(background(t), ids.Member(added.ID)); !errors.Is(err, rpctypes.ErrGRPCMemberNotLearner) {
		t.Errorf("second promotion: %v", err)
	}
	eventually(t, "it knows that it votes", func() bool { return !n.m.IsLearner() })
	c.moveTo(n)
	n.put("k/led", "x")
	for _, x := range c.nodes {
		ms, err := x.m.Members.MemberList(background(t), true)
		if err != nil || len(ms) != 4 {
			t.Errorf("members on %s: %v, %v", x.name, ms, err)
		}
	}
	c.sameHash()
	// It restarts as a voter.
	n.stop()
	n.mustStart()
	n.ready()
	if n.m.IsLearner() {
		t.Error("a learner again after a restart")
	}
}

func (n *node) failed() {
	n.t.Helper()
	select {
	case <-n.m.replica.Failed():
	case <-time.After(patience):
		n.t.Fatalf("%s still runs", n.name)
	}
	if err := n.m.replica.Err(); !errors.Is(err, ErrRemoved) {
		n.t.Fatalf("%s ended with %v, want ErrRemoved", n.name, err)
	}
	if _, err := n.m.KV.Put(background(n.t), &pb.PutRequest{Key: []byte("x")}, nil); !errors.Is(err, rpctypes.ErrGRPCStopped) {
		n.t.Errorf("put on a removed member: %v", err)
	}
}

func (n *node) remove(id ids.Member) {
	n.t.Helper()
	for {
		_, err := n.m.Members.MemberRemove(background(n.t), id)
		if err == nil {
			return
		}
		if !retried(err) {
			n.t.Fatalf("remove %s: %v", id, err)
		}
	}
}

func TestMemberRemoved(t *testing.T) {
	c := newCluster(t, 3, nil)
	n, via := c.follower(), c.leader()
	via.put("k", "v")
	via.remove(n.m.replica.id)
	n.failed()
	n.stop()
	if _, err := via.m.Members.MemberRemove(background(t), n.m.replica.id); !errors.Is(err, rpctypes.ErrGRPCMemberNotFound) {
		t.Errorf("second removal: %v", err)
	}
	via.put("k", "after")
	// It cannot come back with its old identity.
	if err := n.start(); err == nil {
		n.failed()
		n.stop()
	} else if !strings.Contains(err.Error(), "removed") {
		t.Fatalf("restart of a removed member: %v", err)
	}
	// The leader can be removed as well; the last member continues alone.
	lead := c.leader()
	other := c.follower()
	other.remove(lead.m.replica.id)
	lead.failed()
	lead.stop()
	if got := other.get("k"); got != "after" {
		t.Errorf("the last member reads %q", got)
	}
	other.put("k", "alone")
}

func TestMemberRemovedWhileDown(t *testing.T) {
	c := newCluster(t, 3, nil)
	n := c.follower()
	id := n.m.replica.id
	n.stop()
	c.leader().remove(id)
	n.mustStart()
	n.failed()
	n.stop()
}

func TestStrictReconfig(t *testing.T) {
	var strict atomic.Bool
	strict.Store(true)
	c := newCluster(t, 3, func(cfg *Config) {
		calm(cfg)
		cfg.StrictReconfig = strict.Load()
	})
	lead := c.leader()
	// Members that have just connected do not count yet.
	if _, _, err := lead.m.Members.MemberAdd(background(t), []string{"http://127.0.0.1:1"}, false); !errors.Is(err, rpctypes.ErrGRPCUnhealthy) {
		t.Fatalf("add before the members are known well: %v", err)
	}
	c.clk.ahead.Add(int64(10 * time.Second))
	lead = c.leader()
	down := c.follower()
	down.stop()
	id := down.m.replica.id
	eventually(t, "the leader misses the member", func() bool { return lead.m.tr.ActiveSince(id).IsZero() })
	if _, _, err := lead.m.Members.MemberAdd(background(t), []string{"http://127.0.0.1:1"}, false); !errors.Is(err, rpctypes.ErrGRPCUnhealthy) {
		t.Fatalf("add with one member down: %v", err)
	}
	for _, x := range c.nodes {
		if x == down || x == lead {
			continue
		}
		if _, err := lead.m.Members.MemberRemove(background(t), x.m.replica.id); !errors.Is(err, rpctypes.ErrGRPCUnhealthy) {
			t.Fatalf("removal of the second of two: %v", err)
		}
	}
	lead.remove(id) // a member that is down may be removed
	n, _ := c.join("fresh", c.leader(), false)
	// It has not started, so one more would leave the cluster without quorum.
	if _, _, err := c.leader().m.Members.MemberAdd(background(t), []string{"http://127.0.0.1:2"}, false); err == nil ||
		!strings.Contains(err.Error(), "not enough started members") && !errors.Is(err, rpctypes.ErrGRPCUnhealthy) {
		t.Fatalf("add beside one that has not started: %v", err)
	}
	n.initial = n.initial[:0]
	for _, x := range c.nodes {
		if x != down {
			n.initial = append(n.initial, membership.InitialMember{Name: x.name, PeerURLs: []string{x.url}})
		}
	}
	n.mustStart()
	n.ready()
	c.sameHash()
}

func TestMemberMoves(t *testing.T) {
	c := newCluster(t, 3, nil)
	n := c.follower()
	id := n.m.replica.id
	n.stop()
	to := c.newNode(n.name)
	to.fs, to.initial = n.fs, n.initial
	var err error
	for done := false; !done; {
		_, err = c.leader().m.Members.MemberUpdate(background(t), id, []string{to.url})
		if done = err == nil; !done && !retried(err) {
			t.Fatal(err)
		}
	}
	n.m = nil
	rev := c.leader().put("k", "v")
	to.mustStart()
	to.ready()
	eventually(t, "the member hears from the others at its new address", func() bool { return to.m.replica.Rev() >= rev })
	if x, _ := to.m.cluster.Member(id); len(x.PeerURLs) != 1 || x.PeerURLs[0] != to.url {
		t.Errorf("the member knows itself as %v", x)
	}
	if _, err := c.leader().m.Members.MemberUpdate(background(t), 42, []string{to.url + "1"}); !errors.Is(err, rpctypes.ErrGRPCMemberNotFound) {
		t.Errorf("update of a stranger: %v", err)
	}
}
