package server

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// While one defragmentation after the other runs, writes and reads begin and end.
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
				close(began) // from here on one is always under way
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
