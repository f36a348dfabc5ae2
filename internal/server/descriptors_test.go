package server

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Without file descriptors the member waits, wherever it would wait for room on a full disk.
// The log has its next segment open before it needs it.
func TestInstallWithoutDescriptors(t *testing.T) {
	installWithout(t, syscall.EMFILE, "/snap/", "/store-", "/STORE")
}

func TestFirstStartWithoutDescriptors(t *testing.T) { startWithout(t, syscall.EMFILE) }

// A store that finds no descriptor for a new table is no failed disk: writes are refused until
// it finds one.
func TestStoreWithoutDescriptors(t *testing.T) {
	c, disks := newFaultyCluster(t, 1, nil)
	c.launch()
	n := c.nodes[0]
	n.put("k", "1")
	disks[n].set("/store/", syscall.EMFILE)
	flushed := make(chan error, 1)
	go func() { flushed <- n.m.replica.mach().Engine().Flush(context.Background()) }()
	disks[n].meets(t, "the flush")
	if err := n.m.replica.Err(); err != nil {
		t.Fatalf("the member ended: %v", err)
	}
	put := func(value string) error {
		_, err := n.m.KV.Put(background(t), &pb.PutRequest{Key: []byte("k"), Value: []byte(value)}, nil)
		return err
	}
	if err := put("2"); !errors.Is(err, rpctypes.ErrGRPCNoSpace) {
		t.Errorf("put: %v", err)
	}
	if n.get("k") != "1" {
		t.Error("the key is gone")
	}
	disks[n].set("", nil)
	if err := <-flushed; err != nil {
		t.Error(err)
	}
	eventually(t, "writes are accepted", func() bool { return put("3") == nil })
}

// A leader that finds no descriptor to read its log waits, and then sends what it has read.
func TestLogReadWithoutDescriptors(t *testing.T) {
	c, disks := newFaultyCluster(t, 3, func(cfg *Config) { calm(cfg); cfg.Log.CacheBytes = 100 })
	c.launch()
	n := c.follower()
	c.isolate(n)
	for i := range 100 {
		c.leader().put(fmt.Sprint("k/", i), "v")
	}
	for x, d := range disks {
		if x != n {
			d.set("/wal/", syscall.EMFILE)
		}
	}
	lead := c.leader()
	n.heal()
	disks[lead].meets(t, "the log")
	for _, d := range disks {
		d.set("", nil)
	}
	last := c.leader().put("k/after", "1")
	eventually(t, "the follower has caught up", func() bool { return n.m.replica.Rev() >= last })
	for _, x := range c.nodes {
		if err := x.m.replica.Err(); err != nil {
			t.Error(err)
		}
	}
}
