package cluster

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// leavings are the ways in which a leader, at position old, may go; via is a follower.
var leavings = []struct {
	name   string
	leader func(t *testing.T, tr *trio, old, via int, id uint64)
}{
	{"stopped", func(_ *testing.T, tr *trio, old, _ int, _ uint64) { tr.procs[old].Signal(syscall.SIGTERM) }},
	{"removed through a follower", func(t *testing.T, tr *trio, _, via int, id uint64) { tr.remove(t, via, id) }},
	{"removed through itself", func(t *testing.T, tr *trio, old, _ int, id uint64) { tr.remove(t, old, id) }},
}

func (tr *trio) remove(t *testing.T, via int, id uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	// A cluster that has just started refuses this for a moment.
	child.Eventually(t, limit, "member remove", func() error {
		_, err := tr.clients[via].Cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	})
}

// Whatever makes a leader go, no client waits for an election: the leader hands over first.
func TestNobodyWaitsForElection(t *testing.T) {
	for _, leave := range leavings {
		t.Run(leave.name, func(t *testing.T) {
			// With this election timeout, handover and election cannot be confused.
			const election = 6 * time.Second
			tr := newTrio(t, "--heartbeat-interval=100", fmt.Sprintf("--election-timeout=%d", election.Milliseconds()))
			tr.start(t)
			old, id := tr.leader(t)
			w := child.StartWriters(t, tr.client[:], 12, limit)
			w.More(t, limit, 300)
			leave.leader(t, tr, old, (old+1)%3, id)
			tr.procs[old].Wait(t, limit)
			w.More(t, limit, 300)
			got := w.Stop()
			t.Logf("leader %s: %v", leave.name, got)
			if got.Worst >= election {
				t.Errorf("a client waited %v, longer than the election timeout of %v", got.Worst, election)
			}
		})
	}
}
