package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/mvcc"
)

// spoil changes a stored value without the member noticing, as a disk or memory error would.
func spoil(t *testing.T, m *Member, rev ids.Revision, value string) {
	t.Helper()
	key := engine.Key.K(mvcc.AppendRevision(nil, mvcc.Revision{Main: rev}, false))
	b, err := m.replica.mach().Engine().Get(nil, key)
	if err != nil {
		t.Fatal(err)
	}
	kv := &mvccpb.KeyValue{}
	if err := proto.Unmarshal(b, kv); err != nil {
		t.Fatal(err)
	}
	kv.Value = []byte(value)
	if b, err = proto.Marshal(kv); err != nil {
		t.Fatal(err)
	}
	batch := m.replica.mach().Engine().NewBatch()
	batch.Set(key, b)
	if err := batch.Commit(); err != nil {
		t.Fatal(err)
	}
}

// alarms waits until all members have the same alarms, none if want is empty.
func (c *cluster) alarms(want ...*pb.AlarmMember) {
	c.t.Helper()
	for _, n := range c.nodes {
		eventually(c.t, n.name+" knows the alarms", func() bool {
			got := n.m.Maintenance.Alarms()
			if len(got) != len(want) {
				return false
			}
			for i := range want {
				if !proto.Equal(got[i], want[i]) {
					return false
				}
			}
			return true
		})
	}
}

// alarm raises, clears or lists alarms, and retries during elections.
func (n *node) alarm(r *pb.AlarmRequest) *pb.AlarmResponse {
	n.t.Helper()
	for {
		resp, err := n.m.Maintenance.Alarm(background(n.t), r)
		if err == nil {
			return resp
		}
		if !retried(err) {
			n.t.Fatalf("alarm %v on %s: %v", r, n.name, err)
		}
	}
}

func TestInitialCorruptionCheck(t *testing.T) {
	c := newCluster(t, 3, calm)
	lead, n := c.leader(), c.follower()
	rev := lead.put("k", "v")
	lead.put("l", "v")
	c.sameHash()
	n.stop()
	open := func() *Member {
		t.Helper()
		m, err := Open(context.Background(), n.config())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open()
	if err := m.Integrity.CheckInitial(background(t)); err != nil {
		t.Errorf("a member with the same data: %v", err)
	}
	spoil(t, m, rev, "w")
	if err := m.Integrity.CheckInitial(background(t)); err == nil || !strings.HasSuffix(err.Error(), " found data inconsistency with peers") {
		t.Errorf("a member with other data: %v", err)
	}
	spoil(t, m, rev, "v")
	m.Stop()

	// A member that is behind a compaction cannot be compared; that is no error.
	end := lead.put("k", "v2")
	if _, err := lead.m.KV.Compact(background(t), &pb.CompactionRequest{Revision: int64(end)}); err != nil {
		t.Fatal(err)
	}
	m = open()
	if _, err := m.Integrity.peerHash(background(t), lead.url, rev); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("hash of a compacted revision: %v", err)
	}
	if _, err := m.Integrity.peerHash(background(t), lead.url, end+1000); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Errorf("hash of a future revision: %v", err)
	}
	if err := m.Integrity.CheckInitial(background(t)); err != nil {
		t.Errorf("a member that is behind: %v", err)
	}
	m.Stop()
	n.mustStart()
	n.ready()
	lead.put("k", "v3") // at its revision, members answer with the hash taken at the compaction
	c.sameHash()
}

// corrupted checks what a CORRUPT alarm rejects and what it allows.
func (n *node) corrupted() {
	n.t.Helper()
	ctx := background(n.t)
	key := []byte("x")
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key}}}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
	for what, do := range map[string]func() error{
		"put":    func() error { _, err := n.m.KV.Put(ctx, &pb.PutRequest{Key: key}, nil); return err },
		"delete": func() error { _, err := n.m.KV.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key}, nil); return err },
		"txn": func() error {
			_, err := n.m.KV.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{put}}, nil)
			return err
		},
		"compaction":   func() error { _, err := n.m.KV.Compact(ctx, &pb.CompactionRequest{Revision: 2}); return err },
		"lease grant":  func() error { _, err := n.m.Leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 100}); return err },
		"lease revoke": func() error { _, err := n.m.Leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 1}); return err },
	} {
		err := do()
		for retried(err) {
			err = do()
		}
		if !errors.Is(err, rpctypes.ErrGRPCCorrupt) {
			n.t.Errorf("%s on a corrupt cluster: %v", what, err)
		}
	}
	n.get("x")
	if _, err := n.m.KV.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{get}}, nil); err != nil && !retried(err) {
		n.t.Errorf("read-only txn on a corrupt cluster: %v", err)
	}
}

func TestPeriodicCorruptionCheck(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Checks.Interval = 20 * time.Millisecond })
	n := c.follower()
	rev := c.leader().put("k", "v")
	c.sameHash()
	c.alarms()
	spoil(t, n.m, rev, "w")
	// The leader names the other member, whichever of the two leads by then.
	var alarm *pb.AlarmMember
	eventually(t, "the alarm is raised", func() bool {
		if all := n.m.Maintenance.Alarms(); len(all) > 0 {
			alarm = all[0]
		}
		return alarm != nil
	})
	if alarm.Alarm != pb.AlarmType_CORRUPT {
		t.Errorf("alarm %v", alarm)
	}
	n.corrupted()
	c.leader().corrupted()
	st, err := n.m.Maintenance.Status(context.Background())
	if err != nil || len(st.Errors) == 0 || !strings.Contains(strings.Join(st.Errors, "\n"), "alarm:CORRUPT") {
		t.Errorf("status %v, %v", st, err)
	}
	// While the data differ, the alarm comes back; afterwards it does not.
	clear := func() {
		for _, a := range n.m.Maintenance.Alarms() {
			n.alarm(&pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: a.MemberID, Alarm: a.Alarm})
		}
	}
	clear()
	eventually(t, "the alarm is raised again", func() bool { return len(n.m.Maintenance.Alarms()) > 0 })
	spoil(t, n.m, rev, "v")
	eventually(t, "writes are taken", func() bool {
		clear() // a check in progress may raise it once more
		_, err := n.m.KV.Put(background(t), &pb.PutRequest{Key: []byte("k"), Value: []byte("x")}, nil)
		if err != nil && !errors.Is(err, rpctypes.ErrGRPCCorrupt) && !retried(err) {
			t.Fatal(err)
		}
		return err == nil
	})
	c.sameHash()
}

// compact compacts and waits until all running members have taken its hash.
func (c *cluster) compact(rev ids.Revision) {
	c.t.Helper()
	for {
		_, err := c.leader().m.KV.Compact(background(c.t), &pb.CompactionRequest{Revision: int64(rev)})
		if err == nil || errors.Is(err, rpctypes.ErrGRPCCompacted) {
			break
		}
		if !retried(err) {
			c.t.Fatal(err)
		}
	}
	for _, n := range c.nodes {
		if n.handler.Load() == nil {
			continue
		}
		eventually(c.t, n.name+" has compacted", func() bool {
			all := n.m.replica.kv().CompactionHashes()
			return len(all) > 0 && all[0].Rev == rev
		})
	}
}

func TestCompactHashCheck(t *testing.T) {
	c := newCluster(t, 3, calm)
	lead, n := c.leader(), c.follower()
	first := lead.put("k", "v")
	c.compact(first)
	// Equal data raises no alarm, and is not compared again.
	lead.m.Integrity.checkCompactHashes(background(t))
	if got := lead.m.Integrity.compactionChecked; got != first {
		t.Fatalf("checked up to %d, want %d", got, first)
	}
	// While a member is down, no compaction counts as checked.
	second := lead.put("k", "v2")
	c.sameHash()
	n.stop()
	c.compact(second)
	lead.m.Integrity.checkCompactHashes(background(t))
	if got := lead.m.Integrity.compactionChecked; got != first {
		t.Fatalf("checked up to %d with a member away, want %d", got, first)
	}
	c.alarms()
	n.mustStart()
	n.ready()
	// It applies that compaction late; the next one has a hash only when it is complete.
	eventually(t, n.name+" has compacted, too", func() bool {
		all := n.m.replica.kv().CompactionHashes()
		return len(all) > 0 && all[0].Rev == second
	})

	// Two members agree, so the alarm names the third.
	third := lead.put("k", "v3")
	c.sameHash()
	spoil(t, n.m, third, "x")
	c.compact(lead.put("last", "v"))
	lead.m.Integrity.checkCompactHashes(background(t))
	c.alarms(&pb.AlarmMember{MemberID: uint64(n.m.replica.id), Alarm: pb.AlarmType_CORRUPT})
	n.corrupted()
}

// All members differ, so it is unknown who is right; the leader's own rounds find it.
func TestCompactHashCheckWithoutMajority(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Checks.Compactions, cfg.Checks.CompactionsInterval = true, 20*time.Millisecond })
	lead := c.leader()
	rev := lead.put("k", "v")
	c.sameHash()
	for _, n := range c.nodes {
		spoil(t, n.m, rev, "of "+n.name)
	}
	c.compact(rev)
	c.alarms(&pb.AlarmMember{MemberID: 0, Alarm: pb.AlarmType_CORRUPT})
}
