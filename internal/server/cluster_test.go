package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/ids"
)

func TestThreeMembers(t *testing.T) {
	c := newCluster(t, 3, calm)
	var watchers []*watcher
	for _, n := range c.nodes {
		watchers = append(watchers, n.watch("k/", 0))
	}
	// A write that one member acknowledged can be read on all others.
	var rev ids.Revision
	for i, n := range c.nodes {
		key, value := fmt.Sprintf("k/%d", i), fmt.Sprintf("by %s", n.name)
		n.put(key, value)
		for _, r := range c.nodes {
			if got := r.get(key); got != value {
				t.Fatalf("%s reads %s = %q behind an acknowledged put of %q on %s", r.name, key, got, value, n.name)
			}
		}
	}
	for _, n := range c.nodes {
		_, err := n.m.KV.Txn(background(t), &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte("k/txn"), Target: pb.Compare_VERSION, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_Version{Version: 0}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k/txn"), Value: []byte(n.name)}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k/txn")}}}},
		}, nil)
		if err != nil {
			t.Fatalf("txn on %s: %v", n.name, err)
		}
	}
	del, err := c.nodes[1].m.KV.DeleteRange(background(t), &pb.DeleteRangeRequest{Key: []byte("k/0"), PrevKv: true}, nil)
	if err != nil || del.Deleted != 1 || string(del.PrevKvs[0].Value) != "by m0" {
		t.Fatalf("delete: %v, %v", del, err)
	}
	rev = ids.Revision(del.Header.Revision)
	want := []string{"PUT k/0", "PUT k/1", "PUT k/2", "PUT k/txn", "DELETE k/txn", "PUT k/txn", "DELETE k/0"}
	for i, w := range watchers {
		w.until(rev)
		var got []string
		for _, e := range w.events {
			got = append(got, fmt.Sprintf("%s %s", e.Type, e.Kv.Key))
		}
		if !slices.Equal(got, want) {
			t.Errorf("events on %s: %v, want %v", c.nodes[i].name, got, want)
		}
	}
	c.sameHash()
}

func TestMoveLeader(t *testing.T) {
	c := newCluster(t, 3, calm)
	for range 3 {
		lead, to := c.leader(), c.follower()
		if err := to.m.Maintenance.MoveLeader(background(t), to.m.replica.id); !errors.Is(err, rpctypes.ErrGRPCNotLeader) {
			t.Fatalf("move on a follower: %v", err)
		}
		if err := lead.m.Maintenance.MoveLeader(background(t), 42); !errors.Is(err, rpctypes.ErrGRPCBadLeaderTransferee) {
			t.Fatalf("move to a stranger: %v", err)
		}
		if err := lead.m.Maintenance.MoveLeader(background(t), to.m.replica.id); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new leader leads", func() bool { return to.m.replica.isLeader() })
		to.put("k", to.name)
		if got := lead.get("k"); got != to.name {
			t.Fatalf("old leader reads %q, want %q", got, to.name)
		}
	}
}

// load puts numbered keys on a member until it is stopped, and remembers the acknowledged ones.
type load struct {
	wg    sync.WaitGroup
	stop  chan struct{}
	mu    sync.Mutex
	acked map[string]string
	errs  []error
}

func (n *node) load(prefix string, writers int) *load {
	l := &load{stop: make(chan struct{}), acked: map[string]string{}}
	m := n.m
	for w := range writers {
		l.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				key := fmt.Sprintf("%s/%d/%d", prefix, w, i)
				_, err := m.KV.Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: []byte(key)}, nil)
				l.mu.Lock()
				if err == nil {
					l.acked[key] = key
				} else if !retried(err) {
					l.errs = append(l.errs, err)
				}
				l.mu.Unlock()
				if errors.Is(err, rpctypes.ErrGRPCStopped) {
					return
				}
			}
		})
	}
	return l
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// end stops the writers and checks that n has every acknowledged key.
func (l *load) end(t *testing.T, n *node, prefix string) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	end := []byte(prefix + "0") // '0' follows '/'
	res := n.rangeOf(&pb.RangeRequest{Key: []byte(prefix + "/"), RangeEnd: end})
	have := map[string]string{}
	for _, b := range res.KVs {
		kv := decodeKV(t, b)
		have[string(kv.Key)] = string(kv.Value)
	}
	for k, v := range l.acked {
		if have[k] != v {
			t.Errorf("%s lost the acknowledged put of %s", n.name, k)
		}
	}
}

// A leader that shuts down transfers leadership first: the others have a leader at once, and
// every request in flight gets a definite answer.
func TestLeaderStopsUnderLoad(t *testing.T) {
	c := newCluster(t, 3, nil)
	lead, other := c.leader(), c.follower()
	onLeader, onOther := lead.load("l", 4), other.load("o", 4)
	eventually(t, "both take writes", func() bool { return onLeader.count() > 50 && onOther.count() > 50 })
	lead.stop()
	if id := lead.m.replica.Leader(); id == lead.m.replica.id || id == 0 {
		t.Errorf("the member stopped knowing %s as the leader: it handed nothing over", id)
	}
	if next := c.leader(); next == lead {
		t.Fatal("the stopped member leads")
	}
	n := onOther.count()
	eventually(t, "writes go on", func() bool { return onOther.count() > n+50 })
	onLeader.end(t, other, "l")
	onOther.end(t, other, "o")
	for _, err := range onLeader.errs {
		if !errors.Is(err, rpctypes.ErrGRPCStopped) {
			t.Errorf("a writer on the stopping leader got %v", err)
		}
	}
	for _, err := range onOther.errs {
		t.Errorf("a writer on a member that stays got %v", err)
	}
	lead.mustStart()
	lead.ready()
	c.sameHash()
}

func TestRestartInAnyOrder(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.SnapshotCount, cfg.CatchUpEntries = 50, 20 })
	rev := ids.Revision(0)
	for i, order := range [][]int{{0, 1, 2}, {2, 0, 1}, {1, 2, 0}} {
		for j, k := range order {
			n := c.nodes[k]
			for p := range 30 {
				rev = n.put(fmt.Sprintf("k/%d/%d/%d", i, j, p), "v")
			}
			if (i+j)%2 == 0 {
				n.stop()
			} else {
				n.crash()
			}
			rev = c.leader().put("while down", n.name)
			n.mustStart()
			n.ready()
			eventually(t, n.name+" has caught up", func() bool { return n.m.replica.Rev() >= rev })
		}
	}
	// All at the same time.
	c.stop()
	for _, n := range c.nodes {
		n.mustStart()
	}
	for _, n := range c.nodes {
		n.ready()
		if res := n.rangeOf(&pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0"), CountOnly: true}); res.Count != 270 {
			t.Errorf("%s has %d keys, want 270", n.name, res.Count)
		}
	}
	c.sameHash()
}
