package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/legacy/v2request"
)

// everyCall makes each kind of call once, whatever its outcome.
var everyCall = map[string]func(ctx context.Context, m *Member, i int){
	"put": func(ctx context.Context, m *Member, i int) {
		m.KV.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i%500), Value: []byte(strings.Repeat("v", 300))}, nil)
	},
	"delete": func(ctx context.Context, m *Member, i int) {
		m.KV.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: fmt.Appendf(nil, "k%d", i%500)}, nil)
	},
	"txn": func(ctx context.Context, m *Member, i int) {
		m.KV.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opRange("k1"), opPut("t")}}, nil)
	},
	"read txn": func(ctx context.Context, m *Member, i int) {
		m.KV.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opRange("k1"), opRange("k2")}}, nil)
	},
	"range": func(ctx context.Context, m *Member, i int) {
		m.KV.Range(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Serializable: i%2 == 0})
	},
	"range stream": func(ctx context.Context, m *Member, i int) {
		if l, err := m.KV.RangeStream(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}); err == nil {
			l.Next()
			l.Close()
		}
	},
	"compact": func(ctx context.Context, m *Member, i int) {
		m.KV.Compact(ctx, &pb.CompactionRequest{Revision: int64(m.replica.Rev() - 1), Physical: true})
	},
	"lease": func(ctx context.Context, m *Member, i int) {
		r, err := m.Leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 1})
		if err != nil {
			return
		}
		m.Leases.LeaseRenew(ctx, lease.ID(r.ID))
		m.Leases.TimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: r.ID, Keys: true})
		m.Leases.LeaseLeases(ctx)
		m.Leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: r.ID})
	},
	"members": func(ctx context.Context, m *Member, i int) {
		m.Members.MemberList(ctx, true)
		m.Members.MemberUpdate(ctx, 12345, []string{"http://127.0.0.1:1"})
		m.Members.MemberPromote(ctx, m.replica.id)
	},
	"leader": func(ctx context.Context, m *Member, i int) {
		for _, id := range m.cluster.VoterIDs() {
			m.Maintenance.MoveLeader(ctx, id)
		}
	},
	"hash": func(ctx context.Context, m *Member, i int) {
		m.Maintenance.HashKV(ctx, 0)
		m.Maintenance.Hash(ctx)
	},
	"snapshot": func(ctx context.Context, m *Member, i int) {
		if f, _, err := m.Maintenance.SnapshotFile(ctx); err == nil {
			io.Copy(io.Discard, f)
			f.Close()
		}
	},
	"maintenance": func(ctx context.Context, m *Member, i int) {
		m.Maintenance.Defragment(ctx)
		m.Maintenance.Alarm(ctx, &pb.AlarmRequest{})
		m.driver.RaftStatus()
		m.Maintenance.Status(ctx)
		m.Maintenance.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "3.6"})
	},
	"users": func(ctx context.Context, m *Member, i int) {
		m.Accounts.UserAdd(ctx, &pb.AuthUserAddRequest{Name: fmt.Sprint("u", i%10), Password: "p"})
		m.Accounts.UserList(ctx, &pb.AuthUserListRequest{})
		m.Accounts.Authenticate(ctx, &pb.AuthenticateRequest{Name: "u1", Password: "p"})
	},
	"v2": func(ctx context.Context, m *Member, i int) {
		w, err := m.V2.V2Watch("/1", true, true, 0)
		if err != nil {
			return
		}
		defer w.Close()
		m.V2.V2Do(ctx, &v2request.Request{Method: "PUT", Path: fmt.Sprint("/1/k", i%50), Val: "v"})
		m.V2.V2Do(ctx, &v2request.Request{Method: "GET", Path: "/1/k1", Quorum: true})
		<-w.Events()
	},
	"watch": func(ctx context.Context, m *Member, i int) {
		s := m.Watches.Hub().NewStream(ctx)
		defer s.Close()
		m.Watches.CreateWatch(ctx, s, &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 1})
		for range 3 {
			if _, err := s.Next(ctx); err != nil {
				return
			}
			s.Progress()
		}
	},
}

// Calls arrive at any moment of a shutdown, with contexts that never end; all of them must
// return.
func TestStopEndsEveryCall(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size, " members"), func(t *testing.T) {
			c := newCluster(t, size, func(cfg *Config) { cfg.SnapshotCount, cfg.CatchUpEntries = 200, 100 })
			n := c.leader()
			for i := range 500 {
				n.put(fmt.Sprint("k", i), "v")
			}
			var running sync.Map
			var wg sync.WaitGroup
			var stopped, calls atomic.Int64
			for name, call := range everyCall {
				for g := range 2 {
					wg.Go(func() {
						id := fmt.Sprint(name, " ", g)
						for i := g; stopped.Load() == 0 || i%4 != 0; i++ {
							running.Store(id, true)
							call(context.Background(), n.m, i)
							calls.Add(1)
						}
						running.Delete(id)
					})
				}
			}
			eventually(t, "calls are under way", func() bool { return calls.Load() > 500 })
			done := make(chan struct{})
			go func() {
				n.m.Stop()
				stopped.Store(1)
				wg.Wait()
				close(done)
			}()
			select {
			case <-done:
			case <-time.After(2 * patience):
				var left []string
				running.Range(func(k, _ any) bool { left = append(left, k.(string)); return true })
				t.Fatalf("stopped=%d; these calls have not ended: %q", stopped.Load(), left)
			}
		})
	}
}

// A physical compaction also returns if its store was replaced by a received one before the
// records were deleted.
func TestCompactionOfReplacedStore(t *testing.T) {
	n := newCluster(t, 1, nil).nodes[0]
	var rev ids.Revision
	for range 3 {
		rev = n.put("k", "v")
	}
	reader := n.m.replica.kv().View() // delays the deletion of the records
	defer reader.Close()
	compacted := make(chan error, 1)
	go func() {
		_, err := n.m.KV.Compact(context.Background(), &pb.CompactionRequest{Revision: int64(rev), Physical: true})
		compacted <- err
	}()
	eventually(t, "the compaction is applied", func() bool { return n.m.replica.kv().CompactRev() == rev })
	select {
	case err := <-compacted:
		t.Errorf("got %v while a reader is in the way", err)
	default:
	}
	n.m.replica.mach().Close() // as retire does
	select {
	case err := <-compacted:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("no answer")
	}
}

// A failed member applies nothing: reads that wait for it return even before the member is
// stopped.
func TestReadsOfFailedMember(t *testing.T) {
	n := newCluster(t, 1, nil).nodes[0]
	m := n.m
	n.put("k", "v")
	gate := make(chan struct{})
	defer close(gate)
	m.applier.work.Between(func() { <-gate })
	go m.KV.Put(context.Background(), &pb.PutRequest{Key: []byte("k")}, nil)
	eventually(t, "a write is committed and not applied", func() bool { return ids.Index(m.replica.commit.Load()) > m.replica.mach().Applied() })
	waits := map[string]func(context.Context) error{
		"a barrier":            m.replica.barrier,
		"the wait for entries": m.replica.waitApplied,
	}
	ended := make(chan string, len(waits))
	for name, wait := range waits {
		go func() { ended <- fmt.Sprint(name, ": ", wait(context.Background())) }()
	}
	m.replica.fail(errors.New("the disk is gone"))
	for range waits {
		select {
		case got := <-ended:
			if !strings.HasSuffix(got, rpctypes.ErrGRPCStopped.Error()) {
				t.Error(got)
			}
		case <-time.After(patience):
			t.Fatal("somebody waits for what will not be applied")
		}
	}
}

func opRange(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func opPut(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}
