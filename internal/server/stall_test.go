package server

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// gateFS is a disk on which no write to the raft log completes while the gate is shut.
type gateFS struct {
	*vfs.MemFS
	mu   sync.Mutex
	shut chan struct{} // nil while open
	err  error         // returned by syncs, which then do not reach the disk
}

func (f *gateFS) close() { f.mu.Lock(); f.shut = make(chan struct{}); f.mu.Unlock() }

func (f *gateFS) open() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut != nil {
		close(f.shut)
		f.shut = nil
	}
}

func (f *gateFS) pass() error {
	f.mu.Lock()
	shut, err := f.shut, f.err
	f.mu.Unlock()
	if shut != nil {
		<-shut
	}
	return err
}

func (f *gateFS) gated(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.Contains(name, "/wal") || path.Ext(strings.TrimSuffix(name, ".tmp")) != ".wal" {
		return file, err
	}
	return gateFile{file, f}, nil
}

func (f *gateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.MemFS.Create(name, c)
	return f.gated(name, file, err)
}

func (f *gateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.MemFS.OpenReadWrite(name, c, opts...)
	return f.gated(name, file, err)
}

type gateFile struct {
	vfs.File
	f *gateFS
}

func (g gateFile) Sync() error {
	if err := g.f.pass(); err != nil {
		return err
	}
	return g.File.Sync()
}

func (g gateFile) SyncData() error {
	if err := g.f.pass(); err != nil {
		return err
	}
	return g.File.SyncData()
}

// newGatedCluster founds a cluster in which each disk has a gate.
func newGatedCluster(t *testing.T, size int, tune func(*Config)) (*cluster, map[*node]*gateFS) {
	t.Helper()
	disks := map[*node]*gateFS{}
	c := prepareCluster(t, size, tune)
	for _, n := range c.nodes {
		disks[n] = &gateFS{MemFS: vfs.NewCrashableMem()}
		n.fs = disks[n]
	}
	c.launch()
	t.Cleanup(func() { // before the members are stopped
		for _, d := range disks {
			d.open()
		}
	})
	return c, disks
}

// stallWrite starts a write on n and returns when the log waits for the disk. The channel
// receives the outcome and how long it took.
func (n *node) stallWrite(key string) <-chan outcome {
	n.t.Helper()
	out := make(chan outcome, 1)
	go func() {
		start := time.Now()
		_, err := n.m.KV.Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: []byte(key)}, nil)
		out <- outcome{err, time.Since(start)}
	}()
	eventually(n.t, "the log waits for the disk", func() bool { return n.m.logw.logStall() > 3*n.m.cfg.Tick })
	return out
}

type outcome struct {
	err  error
	took time.Duration
}

func (o outcome) early(t *testing.T, what string, m *Member) {
	t.Helper()
	// It may also be rejected at once, as commit runs ahead of apply here.
	if o.err != nil && !retried(o.err) && !errors.Is(o.err, ErrTooManyRequests) {
		t.Errorf("%s: %v", what, o.err)
	}
	// Generous: without the check of the log it would be the request timeout, or forever.
	if o.took >= m.cfg.requestTimeout() {
		t.Errorf("%s took %v behind a stalled disk, the request timeout is %v", what, o.took, m.cfg.requestTimeout())
	}
}

// A leader whose log write hangs transfers leadership meanwhile; writes and reads on it fail
// early, those on the others continue.
func TestStalledLeaderHandsOver(t *testing.T) {
	c, disks := newGatedCluster(t, 3, nil)
	for round := range 3 {
		lead := c.leader()
		var other *node
		for _, n := range c.nodes {
			if n != lead {
				other = n
			}
		}
		lead.put("k/before", fmt.Sprint(round))
		prefix := fmt.Sprintf("load%d", round)
		load := other.load(prefix, 4)
		eventually(t, "load runs", func() bool { return load.count() > 20 })
		disks[lead].close()
		stalled := lead.stallWrite(fmt.Sprintf("k/stalled%d", round))
		eventually(t, "another member leads", func() bool { id := other.m.replica.Leader(); return id != 0 && id != lead.m.replica.id })
		(<-stalled).early(t, "a write that was in flight", lead.m)
		count := load.count()
		eventually(t, "writes go on", func() bool { return load.count() > count+50 })

		// New requests to the stalled member.
		start := time.Now()
		_, err := lead.m.KV.Put(context.Background(), &pb.PutRequest{Key: []byte("k/late")}, nil)
		outcome{err, time.Since(start)}.early(t, "a write on the stalled member", lead.m)
		start = time.Now()
		_, err = lead.m.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte("k/before")})
		outcome{err, time.Since(start)}.early(t, "a read on the stalled member", lead.m)
		if res, err := lead.m.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte("k/before"), Serializable: true}); err != nil || len(res.KVs) != 1 {
			t.Errorf("local read on the stalled member: %v, %v", res, err)
		}
		if lead.m.replica.isLeader() {
			t.Error("the stalled member leads again")
		}
		disks[lead].open()
		load.end(t, lead, prefix)
		for _, err := range load.errs {
			t.Errorf("a writer on a healthy member got %v", err)
		}
		if err := lead.m.replica.Err(); err != nil {
			t.Fatal(err)
		}
		c.sameHash()
	}
}

// Where no other member can commit, a transfer would not help: the leader stays, and requests
// that wait for its disk succeed once the disk does.
func TestStalledLeaderStays(t *testing.T) {
	for _, size := range []int{1, 2} {
		c, disks := newGatedCluster(t, size, nil)
		lead := c.leader()
		term := lead.m.replica.Term()
		disks[lead].close()
		stalled := lead.stallWrite("k")
		reads := make(chan error, 1)
		// Several ticks after the time at which others transfer leadership.
		eventually(t, "the stall is noticed", func() bool { s := lead.m.logw.stalled.Load(); return s != nil && *s == "alone" })
		eventually(t, "more than the limit of a stall has passed", func() bool { return lead.m.logw.logStall() > 2*lead.m.cfg.electionTimeout() })
		go func() {
			_, err := lead.m.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte("k")})
			reads <- err
		}()
		disks[lead].open()
		if o := <-stalled; o.err != nil && !retried(o.err) {
			t.Errorf("%d members: write: %v", size, o.err)
		} else if o.err != nil && lead.m.replica.Term() == term {
			t.Errorf("%d members: a write that only had to wait failed: %v", size, o.err)
		}
		if err := <-reads; err != nil && !retried(err) {
			t.Errorf("%d members: read: %v", size, err)
		}
	}
}

// A follower whose log write hangs delays only its own clients, and those not for long.
func TestStalledFollower(t *testing.T) {
	c, disks := newGatedCluster(t, 3, nil)
	n := c.follower()
	disks[n].close()
	n.stallWrite("k/stalled")
	lead := c.leader()
	load := lead.load("load", 4)
	eventually(t, "writes go on", func() bool { return load.count() > 50 })
	eventually(t, "the stall is noticed", func() bool { s := n.m.logw.stalled.Load(); return s != nil && *s == "behind" })
	start := time.Now()
	_, err := n.m.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte("k/before")})
	outcome{err, time.Since(start)}.early(t, "a read on the stalled member", n.m)
	disks[n].open()
	load.end(t, n, "load")
	c.sameHash()
}

// A failed sync ends the member, and its error names the operation and the file.
func TestFailedSyncStopsMember(t *testing.T) {
	c, disks := newGatedCluster(t, 3, nil)
	lead := c.leader()
	broken := errors.New("input/output error")
	disks[lead].mu.Lock()
	disks[lead].err = broken
	disks[lead].mu.Unlock()
	go lead.m.KV.Put(context.Background(), &pb.PutRequest{Key: []byte("k")}, nil)
	select {
	case <-lead.m.replica.Failed():
	case <-time.After(patience):
		t.Fatal("the member goes on after a failed sync")
	}
	if err := lead.m.replica.Err(); !errors.Is(err, broken) || !strings.Contains(err.Error(), "sync data/member/wal/") {
		t.Errorf("error %v, want the failed sync and its file", err)
	}
	if _, err := lead.m.KV.Put(background(t), &pb.PutRequest{Key: []byte("k")}, nil); err == nil {
		t.Error("the member takes writes after a failed sync")
	}
	lead.stop()
	c.leader().put("k", "after")
}
