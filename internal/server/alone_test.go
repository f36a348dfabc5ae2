package server

import (
	"context"
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A member that is the whole cluster reads without a round of the core once one round has
// shown that it has applied everything, but not after it has stopped being alone.
func TestReadsOfASingleMember(t *testing.T) {
	c := newCluster(t, 1, calm)
	n := c.nodes[0]
	n.put("k", "v")
	n.stop()
	n.mustStart()
	if n.m.replica.alone.proved() {
		t.Fatal("a member that has just started knows that it is up to date")
	}
	if got := n.get("k"); got != "v" {
		t.Fatalf("reads %q", got)
	}
	if !n.m.replica.alone.proved() {
		t.Fatal("reads still need a round")
	}
	n.m.replica.alone.state.term.Add(1) // as when it votes for another member
	if n.m.replica.alone.proved() {
		t.Fatal("the proof outlives its term")
	}
	n.m.replica.alone.state.term.Add(^uint64(0))

	if _, _, err := n.m.Members.MemberAdd(background(t), []string{"http://127.0.0.1:1"}, false); err != nil {
		t.Fatal(err)
	}
	if n.m.replica.alone.proved() {
		t.Fatal("a member of two knows by itself that it is up to date")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := n.m.replica.barrier(ctx); err == nil {
		t.Error("a read without a quorum")
	}
}

// A learner receives a write from the leader, so it may acknowledge one that the only voter
// has not applied.
func TestReadsBesideALearner(t *testing.T) {
	c := newCluster(t, 1, calm)
	n := c.nodes[0]
	n.get("k")
	if _, _, err := n.m.Members.MemberAdd(background(t), []string{"http://127.0.0.1:1"}, true); err != nil {
		t.Fatal(err)
	}
	n.get("k")
	if n.m.replica.alone.proved() {
		t.Error("a member with a learner takes itself for the whole cluster")
	}
}

// Without a driver, only a member that has proved to be alone can read, and not after it has
// failed.
func TestReadsOfASingleMemberEnd(t *testing.T) {
	c := newCluster(t, 1, calm)
	n := c.nodes[0]
	n.get("k")
	n.m.driver.halt()
	get := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		_, err := n.m.KV.Range(ctx, &pb.RangeRequest{Key: []byte("k")})
		return err
	}
	if err := get(); err != nil {
		t.Errorf("a read has waited for the core: %v", err)
	}
	n.m.replica.alone.proof.Store(nil)
	if err := get(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a proof: %v", err)
	}
	n.m.replica.alone.proof.Store(func() *solitude { s, _ := n.m.replica.alone.now(); return &s }())
	n.m.replica.fail(errors.New("the disk is gone"))
	if err := get(); err == nil {
		t.Error("a member that has failed reads on")
	}
	n.crash()
}
