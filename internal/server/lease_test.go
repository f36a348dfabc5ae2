package server

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/lease"
	"quorate/internal/replica"
)

func (n *node) grant(id lease.ID, ttl int64) {
	n.t.Helper()
	if _, err := n.m.Leases.LeaseGrant(background(n.t), &pb.LeaseGrantRequest{ID: int64(id), TTL: ttl}); err != nil {
		n.t.Fatalf("grant on %s: %v", n.name, err)
	}
}

func (n *node) ttl(id lease.ID) *pb.LeaseTimeToLiveResponse {
	n.t.Helper()
	for {
		resp, err := n.m.Leases.TimeToLive(background(n.t), &pb.LeaseTimeToLiveRequest{ID: int64(id), Keys: true})
		if err == nil {
			return resp
		}
		if !retried(err) {
			n.t.Fatalf("time to live on %s: %v", n.name, err)
		}
	}
}

func (n *node) renew(id lease.ID) int64 {
	n.t.Helper()
	for {
		ttl, err := n.m.Leases.LeaseRenew(background(n.t), id)
		if err == nil {
			return ttl
		}
		if !retried(err) {
			n.t.Fatalf("renew on %s: %v", n.name, err)
		}
	}
}

// between checks a TTL that the duration of the test may have reduced by a few seconds.
func between(t *testing.T, what string, got, low, high int64) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %d s, want %d to %d", what, got, low, high)
	}
}

func (c *cluster) moveTo(n *node) {
	c.t.Helper()
	for c.leader() != n {
		if err := c.leader().m.Maintenance.MoveLeader(background(c.t), n.m.replica.id); err != nil {
			c.t.Logf("move: %v", err)
		}
	}
}

func TestLeases(t *testing.T) {
	c := newCluster(t, 3, nil)
	n := c.follower()
	n.grant(7, 100)
	n.putReq(&pb.PutRequest{Key: []byte("a"), Value: []byte("v"), Lease: 7})
	n.putReq(&pb.PutRequest{Key: []byte("b"), Value: []byte("v"), Lease: 7})
	for _, x := range c.nodes {
		got := x.ttl(7)
		between(t, "TTL on "+x.name, got.TTL, 90, 100)
		if fmt.Sprintf("%s", got.Keys) != "[a b]" || got.GrantedTTL != 100 {
			t.Errorf("on %s: %v", x.name, got)
		}
	}
	c.clk.ahead.Add(int64(60 * time.Second))
	between(t, "TTL a minute later", n.ttl(7).TTL, 30, 40)
	if got := n.renew(7); got != 100 {
		t.Errorf("renewal gives %d s, want 100", got)
	}
	between(t, "TTL after a renewal", n.ttl(7).TTL, 90, 100)

	// Without checkpoints, a new leader starts with the full TTL.
	c.clk.ahead.Add(int64(60 * time.Second))
	between(t, "TTL a minute later", n.ttl(7).TTL, 30, 40)
	c.moveTo(n)
	eventually(t, "the new leader is primary", n.m.lessor.IsPrimary)
	for _, x := range c.nodes {
		between(t, "TTL after the election on "+x.name, x.ttl(7).TTL, 90, 101)
	}

	// Expiry revokes the lease on all members, and deletes its keys in one revision.
	w := c.follower().watch("a", 0)
	c.clk.ahead.Add(int64(120 * time.Second))
	for _, x := range c.nodes {
		eventually(t, "the lease is gone on "+x.name, func() bool { return !x.m.lessor.Exists(7) })
		if got := x.get("a") + x.get("b"); got != "" {
			t.Errorf("keys of the lease on %s: %q", x.name, got)
		}
	}
	w.until(4)
	if e := w.events[0]; e.Type.String() != "DELETE" || e.Kv.ModRevision != 4 {
		t.Errorf("event of the expiry: %v", e)
	}
	if got := n.ttl(7); got.TTL != -1 {
		t.Errorf("TTL of a lease that is gone: %v", got)
	}
	for _, x := range c.nodes {
		if _, err := x.m.Leases.LeaseRenew(background(t), 7); err != rpctypes.ErrGRPCLeaseNotFound {
			t.Errorf("renewal of a lease that is gone on %s: %v", x.name, err)
		}
	}
	c.sameHash()
}

func TestLeaseCheckpoints(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Lease.Checkpoints, cfg.State.PersistCheckpoints, cfg.Lease.CheckpointInterval = true, true, 100*time.Millisecond
	})
	n := c.follower()
	n.grant(7, 1000)
	n.putReq(&pb.PutRequest{Key: []byte("a"), Value: []byte("v"), Lease: 7})
	remaining := func(x *node) int64 {
		if all := x.m.lessor.List(); len(all) > 0 {
			return all[0].RemainingTTL
		}
		return 0 // the grant is not applied yet
	}
	recorded := func(below int64) func() bool {
		return func() bool {
			for _, x := range c.nodes {
				if r := remaining(x); r == 0 || r > below {
					return false
				}
			}
			return true
		}
	}
	// A leader that is elected before its predecessor has recorded what is left, as happens on a busy machine,
	// starts the lease again: then the clock moves again.
	runDown := func(left int64) {
		t.Helper()
		eventually(t, "all members know what is left", func() bool {
			if ttl := n.ttl(7).TTL; ttl > left {
				c.clk.ahead.Add(int64(time.Duration(ttl-left) * time.Second))
			}
			return recorded(left)()
		})
	}
	for _, x := range c.nodes {
		// A member that grants after the clock has moved would count from then on.
		eventually(t, "the lease is granted on "+x.name, func() bool { return x.m.lessor.Exists(7) })
	}
	runDown(400)
	c.moveTo(n)
	eventually(t, "the new leader is primary", n.m.lessor.IsPrimary)
	between(t, "TTL after an election", n.ttl(7).TTL, 380, 401)

	// A renewal clears the checkpoint, so the next leader starts with the full TTL.
	if got := c.follower().renew(7); got != 1000 {
		t.Errorf("renewal gives %d s, want 1000", got)
	}
	between(t, "TTL after a renewal", n.ttl(7).TTL, 985, 1000)
	c.moveTo(c.follower())
	eventually(t, "the new leader is primary", c.leader().m.lessor.IsPrimary)
	between(t, "TTL after a renewal and an election", n.ttl(7).TTL, 980, 1001)

	// The checkpoint survives a restart of all members.
	runDown(300)
	c.stop()
	for _, x := range c.nodes {
		x.mustStart()
	}
	for _, x := range c.nodes {
		x.ready()
	}
	between(t, "TTL after a restart", n.ttl(7).TTL, 280, 301)
	if got := n.get("a"); got != "v" {
		t.Errorf("the key of the lease is %q after a restart", got)
	}
}

// A member that was suspended for a while may have been replaced as leader without knowing it:
// it neither renews nor revokes leases before a quorum has confirmed that it still leads.
func TestUnsureLeaderLeavesLeasesAlone(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	m := n.m
	n.grant(7, 1000)
	eventually(t, "the leader has the leases", m.lessor.IsPrimary)
	m.Stop() // it no longer ticks, and no quorum answers
	m.lessor.Promote(c.clk.Now(), 0)
	m.replica.lastTick.Store(c.clk.Now().Add(-time.Second).UnixNano())
	if ttl, err := m.Leases.RenewLease(background(t), 7); err == nil {
		t.Errorf("it renews a lease for %d seconds", ttl)
	}
	if ttl, ok := m.Leases.RenewAtOnce(7); ok {
		t.Errorf("it renews a lease at once for %d seconds", ttl)
	}
	c.clk.ahead.Add(int64(2000 * time.Second))
	m.Leases.expireLeases(background(t))
	if ids := m.lessor.Expired(c.clk.Now(), 10); len(ids) != 1 {
		t.Errorf("it has begun to revoke; left for a sure leader: %v", ids)
	}
}

// What is decided about checkpoints reaches the core in the order of the decisions: no other
// decision is made before a request is in the inbox.
func TestRecordsInOrder(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.nodes[0].m
	free := func() bool {
		if !m.Leases.recording.TryLock() {
			return false
		}
		m.Leases.recording.Unlock()
		return true
	}
	decided, done := make(chan struct{}), make(chan error, 1)
	m.driver.in.Add(func(*replica.Input) { // nothing enters the inbox meanwhile
		go func() {
			done <- m.Leases.record(background(t), m.replica.Term(), func() *pb.InternalRaftRequest {
				if free() {
					t.Error("another decision could be made at the same time")
				}
				close(decided)
				return lease.Record(lease.Checkpoint{ID: 7})
			})
		}()
		<-decided
		for range 1000 {
			if free() {
				t.Error("another decision could be made before this one is proposed")
				return
			}
			runtime.Gosched()
		}
	})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Only the leader renews at once, and only what has to be neither waited for, checked nor
// recorded.
func TestRenewAtOnce(t *testing.T) {
	c := newCluster(t, 3, nil)
	lead := c.leader()
	lead.grant(7, 1000)
	eventually(t, "the leader renews at once", func() bool {
		lead = c.leader()
		ttl, ok := lead.m.Leases.RenewAtOnce(7)
		return ok && ttl == 1000
	})
	if _, ok := lead.m.Leases.RenewAtOnce(8); ok {
		t.Error("it renews an unknown lease")
	}
	for _, n := range c.nodes {
		if n.m.lessor.IsPrimary() {
			continue
		}
		if _, ok := n.m.Leases.RenewAtOnce(7); ok {
			t.Errorf("%s, which does not lead, renews", n.name)
		}
	}
	lead.enableAuth()
	for _, n := range c.nodes {
		if _, ok := n.m.Leases.RenewAtOnce(7); ok {
			t.Errorf("%s renews without asking who the caller is", n.name)
		}
	}
}

// A lease with a recorded remainder is renewed only when that is cleared.
func TestRenewAtOnceLeavesCheckpoints(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) {
		cfg.Lease.Checkpoints, cfg.State.PersistCheckpoints, cfg.Lease.CheckpointInterval = true, true, 100*time.Millisecond
	})
	n := c.nodes[0]
	n.grant(7, 1000)
	eventually(t, "it renews at once", func() bool { _, ok := n.m.Leases.RenewAtOnce(7); return ok })
	c.clk.ahead.Add(int64(500 * time.Second))
	eventually(t, "what is left is recorded", func() bool {
		all := n.m.lessor.List()
		return len(all) == 1 && all[0].RemainingTTL > 0
	})
	if _, ok := n.m.Leases.RenewAtOnce(7); ok {
		t.Error("it renews although the next leader would give the lease less")
	}
	if got := n.renew(7); got != 1000 {
		t.Errorf("renewal gives %d s, want 1000", got)
	}
	if _, ok := n.m.Leases.RenewAtOnce(7); !ok {
		t.Error("it does not renew at once after the record has been cleared")
	}
}
