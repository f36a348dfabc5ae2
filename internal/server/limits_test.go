package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/ids"
	"quorate/internal/mvcc"
)

func (n *node) alarms() string {
	return fmt.Sprint(len(n.m.Maintenance.Alarms()))
}

func TestQuota(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) {
		calm(cfg)
		cfg.State.Quota, cfg.QuotaReported = 4<<20, 4<<20
	})
	n := c.follower()
	value := bytes.Repeat([]byte("v"), 200<<10)
	// trial returns the first error that does not just mean that the machine is busy.
	trial := func(what string, call func(ctx context.Context) error) (err error) {
		eventually(t, what, func() bool {
			err = call(background(t))
			return err == nil || !retried(err)
		})
		return err
	}
	put := func(x *node, key string, value []byte) error {
		return trial("put "+key+" on "+x.name, func(ctx context.Context) error {
			_, err := x.m.KV.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: value}, nil)
			return err
		})
	}
	var err error
	last := 0
	for err == nil && last < 100 {
		if err = put(n, fmt.Sprintf("k/%02d", last), value); err == nil {
			last++
		}
	}
	if !errors.Is(err, rpctypes.ErrGRPCNoSpace) {
		t.Fatalf("put beyond the quota: %v", err)
	}
	for _, x := range c.nodes {
		eventually(t, "the alarm is known on "+x.name, func() bool {
			if x.alarms() == "1" {
				return true
			}
			// If the proposal of the alarm was lost, the next write repeats it.
			if err := put(n, "k/more", value); !errors.Is(err, rpctypes.ErrGRPCNoSpace) {
				t.Fatalf("another put beyond the quota: %v", err)
			}
			return false
		})
		if a := x.m.Maintenance.Alarms()[0]; ids.Member(a.MemberID) != n.m.replica.id || a.Alarm != pb.AlarmType_NOSPACE {
			t.Errorf("alarm on %s: %v", x.name, a)
		}
		if err := put(x, "x", nil); !errors.Is(err, rpctypes.ErrGRPCNoSpace) {
			t.Errorf("put on %s under the alarm: %v", x.name, err)
		}
		if err := trial("grant on "+x.name, func(ctx context.Context) error {
			_, err := x.m.Leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 10})
			return err
		}); !errors.Is(err, rpctypes.ErrGRPCNoSpace) {
			t.Errorf("grant on %s under the alarm: %v", x.name, err)
		}
	}
	// The alarm survives a restart.
	n.stop()
	n.mustStart()
	n.ready()
	if n.alarms() != "1" {
		t.Errorf("%s alarms after a restart", n.alarms())
	}
	// Recovery: delete, compact, defragment, disarm.
	n.again("delete under the alarm", func(ctx context.Context) error {
		_, err := n.m.KV.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0")}, nil)
		return err
	})
	left := n.rangeOf(&pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0")})
	if len(left.KVs) > 0 {
		t.Fatalf("%d keys are left of %d after a delete under the alarm", len(left.KVs), last)
	}
	err = trial("compaction under the alarm", func(ctx context.Context) error {
		_, err := n.m.KV.Compact(ctx, &pb.CompactionRequest{Revision: int64(left.Revision), Physical: true})
		return err
	})
	if err != nil && !errors.Is(err, rpctypes.ErrGRPCCompacted) && !errors.Is(err, mvcc.ErrCompacted) { // returned to a retry
		t.Fatalf("compaction under the alarm: %v", err)
	}
	for _, x := range c.nodes {
		eventually(t, x.name+" has become small", func() bool {
			if err := x.m.Maintenance.Defragment(background(t)); err != nil {
				t.Fatal(err)
			}
			return !x.m.replica.mach().OverQuota(256 << 10)
		})
	}
	var resp *pb.AlarmResponse
	tries := 0
	err = trial("disarm", func(ctx context.Context) (err error) {
		tries++
		resp, err = n.m.Maintenance.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: uint64(n.m.replica.id), Alarm: pb.AlarmType_NOSPACE})
		return err
	})
	if err != nil || len(resp.Alarms) != 1 && tries == 1 {
		t.Fatalf("disarm: %v, %v", resp, err)
	}
	for _, x := range c.nodes {
		x.putReq(&pb.PutRequest{Key: []byte("k/again"), Value: value})
	}
	if n.alarms() != "0" {
		t.Errorf("%s alarms after the disarm", n.alarms())
	}
	c.sameHash()
}

func TestPhysicalCompaction(t *testing.T) {
	c := newCluster(t, 3, nil)
	n := c.follower()
	var rev ids.Revision
	for i := range 300 {
		rev = n.put(fmt.Sprintf("k/%d", i%3), fmt.Sprint(i))
	}
	if _, err := n.m.KV.Compact(background(t), &pb.CompactionRequest{Revision: int64(rev), Physical: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.m.KV.Compact(background(t), &pb.CompactionRequest{Revision: int64(rev)}); !errors.Is(err, rpctypes.ErrGRPCCompacted) {
		t.Errorf("second compaction: %v", err)
	}
	if _, err := n.m.KV.Compact(background(t), &pb.CompactionRequest{Revision: int64(rev + 10)}); !errors.Is(err, rpctypes.ErrGRPCFutureRev) {
		t.Errorf("compaction of the future: %v", err)
	}
	if _, err := n.m.KV.Range(background(t), &pb.RangeRequest{Key: []byte("k/1"), Revision: int64(rev - 1)}); !errors.Is(err, mvcc.ErrCompacted) {
		t.Errorf("read of a compacted revision: %v", err)
	}
	records := 0
	if _, err := n.m.replica.kv().Records(rev, 1000, 1<<20, func(mvcc.Revision, bool, []byte) error { records++; return nil }); err != nil || records != 1 {
		t.Errorf("%d records from the compacted revision on, %v; want 1", records, err)
	}
	n.put("k/1", "later") // at a compacted revision, hashes may be those from before
	c.sameHash()
	// A crash right after it loses nothing.
	n.crash()
	n.mustStart()
	n.ready()
	if got := n.m.replica.kv().CompactRev(); got != rev {
		t.Errorf("compacted to %d after a crash, want %d", got, rev)
	}
	c.sameHash()
}

func TestRequestTooLarge(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.MaxRequestBytes = 10000 })
	n := c.nodes[0]
	n.put("k", string(make([]byte, 9000)))
	if _, err := n.m.KV.Put(background(t), &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 10001)}, nil); !errors.Is(err, rpctypes.ErrGRPCRequestTooLarge) {
		t.Errorf("put: %v", err)
	}
}

// While apply is blocked, writes are accepted up to a limit. More are rejected, and the accepted
// ones are applied when it continues.
func TestApplyStalls(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	stalled, goOn := make(chan struct{}), make(chan struct{})
	n.m.applier.work.Between(func() { close(stalled); <-goOn })
	<-stalled
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked := 0
	for i := range maxApplyGap + 50 {
		wg.Go(func() {
			if _, err := n.m.KV.Put(context.Background(), &pb.PutRequest{Key: fmt.Appendf(nil, "k/%d", i)}, nil); err == nil {
				mu.Lock()
				acked++
				mu.Unlock()
			} else if !errors.Is(err, ErrTooManyRequests) && !retried(err) {
				t.Errorf("put %d: %v", i, err)
			}
		})
	}
	eventually(t, "the gap is reached", func() bool { return ids.Index(n.m.replica.commit.Load()) > n.m.replica.mach().Applied()+maxApplyGap })
	if _, err := n.m.KV.Put(background(t), &pb.PutRequest{Key: []byte("one more")}, nil); !errors.Is(err, ErrTooManyRequests) {
		t.Errorf("put beyond the gap: %v", err)
	}
	if _, err := n.m.KV.Range(background(t), &pb.RangeRequest{Key: []byte("k"), Serializable: true}); err != nil {
		t.Errorf("serializable read: %v", err)
	}
	close(goOn)
	wg.Wait()
	if res := n.rangeOf(&pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0"), CountOnly: true}); res.Count < int64(acked) || acked == 0 {
		t.Errorf("%d keys, %d acknowledged", res.Count, acked)
	}
	n.put("one more", "v")
}
