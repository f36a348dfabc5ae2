package server

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// The documented recovery from a full store, as a script runs it: compact, defragment, disarm, write.
// Nothing waits in between for a size to be updated.
func TestRecoveryFromNoSpace(t *testing.T) {
	for _, physical := range []bool{false, true} {
		c := newCluster(t, 1, func(cfg *Config) { cfg.State.Quota = 8 << 20 })
		n := c.nodes[0]
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		value := make([]byte, 256<<10)
		rand.NewChaCha8([32]byte{}).Read(value) // incompressible
		put := func() error {
			_, err := n.m.KV.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: bytes.Clone(value)}, nil)
			return err
		}
		for round := range 4 {
			full := false
			for range 80 {
				if full = put() != nil; full {
					break
				}
			}
			if !full {
				t.Fatalf("round %d: the store takes more than its quota", round)
			}
			eventually(t, "the alarm is raised", func() bool { return len(n.m.Maintenance.Alarms()) == 1 })
			if _, err := n.m.KV.Compact(ctx, &pb.CompactionRequest{Revision: int64(n.m.replica.Rev()), Physical: physical}); err != nil {
				t.Fatal(err)
			}
			if err := n.m.Maintenance.Defragment(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := n.m.Maintenance.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: uint64(n.m.replica.id)}); err != nil {
				t.Fatal(err)
			}
			if err := put(); err != nil {
				t.Fatalf("round %d: after the recovery: %v", round, err)
			}
			if a := n.m.Maintenance.Alarms(); len(a) > 0 {
				t.Fatalf("round %d: %v", round, a)
			}
		}
	}
}

// After a compaction alone, the store shrinks on its own.
func TestSizeFallsByItself(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	value := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{}).Read(value)
	for range 64 {
		n.putReq(&pb.PutRequest{Key: []byte("k"), Value: value})
	}
	before := n.m.replica.mach().Engine().Size().Total
	if _, err := n.m.KV.Compact(context.Background(), &pb.CompactionRequest{Revision: int64(n.m.replica.Rev())}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store is small", func() bool { return n.m.replica.mach().Engine().Size().Total < before/4 })
}
