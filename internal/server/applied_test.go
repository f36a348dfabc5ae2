package server

import (
	"fmt"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/ids"
)

// The store is ahead of raft's applied index until raft is notified. The log is truncated by
// raft's index, because raft reads the entries that it considers unapplied when it campaigns.
func TestTruncationWaitsForRaft(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.CatchUpEntries = 1 })
	f := c.follower()
	lead := c.leader()
	lead.put("k", "v")
	// The store is busy for a moment: entries that arrive meanwhile are applied before raft
	// is notified of any of them.
	busy, done := make(chan struct{}), make(chan struct{})
	f.m.applier.work.Between(func() { close(busy); <-done })
	<-busy
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				lead.m.KV.Put(background(t), &pb.PutRequest{Key: fmt.Appendf(nil, "k/%d/%d", i, j)}, nil)
			}
		})
	}
	wg.Wait()
	last := lead.m.replica.mach().Applied()
	eventually(t, "all of it waits for the store", func() bool {
		at, _ := f.m.log.LastIndex()
		return ids.Index(at) >= last && ids.Index(f.m.replica.commit.Load()) >= last
	})
	f.m.driver.coreMu.Lock()
	close(done)
	eventually(t, "some of it is applied", func() bool { return f.m.replica.mach().Applied() > f.m.driver.pipe.Core().Node().State().Applied+10 })
	if err := f.m.logw.truncateOnce(); err != nil {
		t.Error(err)
	}
	first, _ := f.m.log.FirstIndex()
	if applied := f.m.driver.pipe.Core().Node().State().Applied; ids.Index(first) > applied+1 {
		t.Errorf("the log begins at entry %d, raft has applied entry %d", first, applied)
	}
	f.m.driver.coreMu.Unlock()
	f.m.driver.drive()
	c.isolate(lead)
	eventually(t, "somebody else leads", func() bool {
		l := f.m.replica.Leader()
		return l != 0 && l != lead.m.replica.id
	})
	lead.heal()
	eventually(t, "the log is truncated", func() bool {
		if err := f.m.logw.truncateOnce(); err != nil {
			t.Fatal(err)
		}
		first, _ := f.m.log.FirstIndex()
		return ids.Index(first) > last-10
	})
	c.sameHash()
}
