package server

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/command"
	"quorate/internal/proposal"
)

// Writes arrive as soon as the members run, before they have streams to each other, and more
// than the request queue holds. While the leader stays, none is lost: what could not be sent
// is proposed again.
func TestWritesAtTheStart(t *testing.T) {
	const rounds = 2
	for round := range rounds {
		c := prepareCluster(t, 3, func(cfg *Config) { cfg.Tick = 100 * time.Millisecond })
		t.Cleanup(c.stop)
		for _, n := range c.nodes {
			n.mustStart()
		}
		var (
			wg   sync.WaitGroup
			mu   sync.Mutex
			lost []error
		)
		for _, n := range c.nodes {
			for i := range 40 {
				wg.Go(func() {
					for j := range 5 {
						if _, err := n.m.KV.Put(context.Background(), &pb.PutRequest{Key: fmt.Appendf(nil, "%s/%d/%d", n.name, i, j)}, nil); err != nil {
							mu.Lock()
							lost = append(lost, fmt.Errorf("%s, term %d: %w", n.name, n.m.replica.Term(), err))
							mu.Unlock()
						}
					}
				})
			}
		}
		wg.Wait()
		if term := c.leader().m.replica.Term(); term > 2 {
			t.Logf("round %d: the leader has changed, and writes may be lost with one (%d were)", round, len(lost))
			continue
		}
		for _, err := range lost {
			t.Errorf("round %d: %v", round, err)
		}
		res := c.follower().rangeOf(&pb.RangeRequest{Key: []byte("m"), RangeEnd: []byte("n"), CountOnly: true})
		if res.Count != 600 || res.Revision != 601 {
			t.Errorf("round %d: %d keys at revision %d, want 600 at 601: a write was lost or came twice", round, res.Count, res.Revision)
		}
	}
}

// A returned proposal is sent again at the next tick, unless its client has already timed out.
func TestReturnedProposal(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Tick = 50 * time.Millisecond })
	n := c.follower()
	give := func(key string) *proposal.Pending {
		t.Helper()
		id := n.m.replica.ids.Next()
		req := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: id}, Put: &pb.PutRequest{Key: []byte(key)}}
		data, err := command.EncodeRequest(req)
		if err != nil {
			t.Fatal(err)
		}
		p := &proposal.Pending{ID: id, Req: req, Data: data}
		if err := n.m.replica.props.Admit(p, n.m.cfg.Clock.Now(), patience); err != nil {
			t.Fatal(err)
		}
		return p
	}
	back := func(p *proposal.Pending) {
		host{driver: n.m.driver}.Returned(&raftpb.Message{Type: raftpb.MsgProp.Enum(), Entries: []*raftpb.Entry{{Data: p.Data}}})
	}
	gone, awaited := give("given up"), give("awaited")
	n.m.replica.props.Forget(gone.ID)
	back(gone)
	back(awaited) // returned proposals keep their order
	if res := <-awaited.Done(); res.Err != nil {
		t.Fatal(res.Err)
	}
	for key, want := range map[string]bool{"given up": false, "awaited": true} {
		if got := len(n.rangeOf(&pb.RangeRequest{Key: []byte(key)}).KVs) == 1; got != want {
			t.Errorf("%s: written %v, want %v", key, got, want)
		}
	}
}
