package server

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Writes and reads complete while defragmentations run one after the other.
func TestDefragmentBesideTraffic(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	value := bytes.Repeat([]byte("v"), 20<<10)
	for i := range 200 {
		n.putReq(&pb.PutRequest{Key: fmt.Appendf(nil, "k/%d", i%100), Value: value})
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		var err error
		for i := 0; ctx.Err() == nil && err == nil; i++ {
			if i == 1 {
				close(began) // from here on one is always running
			}
			err = n.m.Maintenance.Defragment(context.Background())
		}
		ended <- err
	}()
	<-began
	for i := range 100 {
		key := fmt.Sprintf("beside/%d", i)
		n.put(key, "x")
		if got := n.get(key); got != "x" {
			t.Fatalf("%s reads as %q", key, got)
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("the defragmentations ended before the traffic: %v", err)
	default:
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if res := n.rangeOf(&pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0")}); len(res.KVs) != 100 {
		t.Errorf("%d keys afterwards, want 100", len(res.KVs))
	}
}

// A defragmentation also releases the space of a compaction that was requested before it, however
// long that takes: here a reader delays it.
func TestDefragmentWaitsForCompactions(t *testing.T) {
	patience := compactionPatience
	t.Cleanup(func() { compactionPatience = patience })
	compactionPatience = time.Millisecond // for the first one
	core, logs := observer.New(zap.WarnLevel)
	c := newCluster(t, 1, func(cfg *Config) { cfg.Logger = zap.New(core) })
	n := c.nodes[0]
	value := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{}).Read(value)
	for range 64 {
		n.putReq(&pb.PutRequest{Key: []byte("k"), Value: value})
	}
	reader := n.m.replica.mach().KV().View()
	if _, err := n.m.KV.Compact(background(t), &pb.CompactionRequest{Revision: int64(n.m.replica.Rev())}); err != nil {
		t.Fatal(err)
	}
	if err := n.m.Maintenance.Defragment(background(t)); err != nil {
		t.Fatal(err)
	}
	const text = "a compaction waits for readers; its space is reclaimed later"
	if logs.FilterMessage(text).Len() != 1 {
		t.Fatal("a defragmentation does not wait for the compaction before it")
	}
	before := n.m.replica.mach().Engine().Size().Total
	compactionPatience = patience
	ended := make(chan int64, 1)
	go func() {
		if err := n.m.Maintenance.Defragment(background(t)); err != nil {
			t.Error(err)
		}
		ended <- n.m.replica.mach().KV().Compactions()
	}()
	reader.Close()
	if n := <-ended; n != 1 {
		t.Errorf("when the defragmentation ends, %d compactions have", n)
	}
	if after := n.m.replica.mach().Engine().Size().Total; after > before/4 {
		t.Errorf("%d bytes before, %d after", before, after)
	}
}
