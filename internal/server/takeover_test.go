package server

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

// handOver converts the directory of a stopped member to one of etcd, after change has written
// to its store.
func (n *node) handOver(change func(b engine.Batch)) {
	n.t.Helper()
	cfg := n.config()
	l := cfg.layout()
	if change != nil {
		eng, err := datadir.OpenStore(l, testLogger)
		if err != nil {
			n.t.Fatal(err)
		}
		b := eng.NewBatch()
		change(b)
		if err := b.Commit(); err != nil {
			n.t.Fatal(err)
		}
		if err := eng.Flush(context.Background()); err != nil {
			n.t.Fatal(err)
		}
		if err := eng.Close(); err != nil {
			n.t.Fatal(err)
		}
	}
	if _, err := datadir.Leave(context.Background(), l, membership.Own, datadir.Options{Version: membership.Own, Logger: testLogger}); err != nil {
		n.t.Fatal(err)
	}
}

// record writes a key at a revision in the store's format.
func record(t *testing.T, b engine.Batch, rev ids.Revision, kv *mvccpb.KeyValue) {
	t.Helper()
	v, err := proto.Marshal(kv)
	if err != nil {
		t.Fatal(err)
	}
	b.Set(engine.Key.K(mvcc.AppendRevision(nil, mvcc.Revision{Main: rev}, false)), v)
}

// A cluster continues after each of its members was converted to etcd and taken over again,
// also with keys of leases that do not exist, as in etcd.
func TestTakeOver(t *testing.T) {
	c := newCluster(t, 3, nil)
	last := c.leader().put("k", "v")
	for _, n := range c.nodes {
		eventually(t, "the member has the key", func() bool { return n.m.replica.Rev() >= last })
	}
	id := c.nodes[0].m.ClusterID()
	c.stop()
	for _, n := range c.nodes {
		n.handler.Store(nil)
		n.handOver(func(b engine.Batch) {
			record(t, b, last+1, &mvccpb.KeyValue{Key: []byte("orphan"), CreateRevision: int64(last + 1), ModRevision: int64(last + 1), Version: 1, Lease: 77, Value: []byte("kept")})
		})
	}
	for _, n := range c.nodes {
		n.mustStart()
	}
	for _, n := range c.nodes {
		n.ready()
	}
	if got := c.leader().get("orphan"); got != "kept" {
		t.Errorf("the key without its lease: %q", got)
	}
	if rev := c.leader().put("k", "w"); rev != last+2 {
		t.Errorf("revision %d, want %d", rev, last+2)
	}
	c.sameHash()
	if got := c.nodes[0].m.ClusterID(); got != id {
		t.Errorf("cluster %s, was %s", got, id)
	}
	for _, n := range c.nodes {
		if names, err := n.fs.List("data/member"); err != nil || !strings.Contains(strings.Join(names, " "), "snap.etcd-") {
			t.Errorf("etcd's files are not kept: %q, %v", names, err)
		}
	}
}

// A store that cannot be loaded is detected before etcd's files are moved aside.
func TestTakeOverOfStoreThatCannotBeLoaded(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	n.put("k", "v")
	n.stop()
	n.handOver(func(b engine.Batch) { b.Set(engine.Lease.K(binary.BigEndian.AppendUint64(nil, 5)), []byte{0xff}) })
	if err := n.start(); err == nil || !strings.Contains(err.Error(), "lease") {
		t.Fatalf("started: %v", err)
	}
	cfg := n.config()
	if kind, err := cfg.layout().Kind(); err != nil || kind != datadir.Etcds {
		t.Errorf("kind %v, %v", kind, err)
	}
	names, err := n.fs.List("data/member")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, datadir.StorePrefix) || name == "OWNER" || name == "STORE" {
			t.Errorf("%s is left behind", name)
		}
	}
	if _, err := n.fs.Stat("data/member/snap/db"); err != nil {
		t.Error(err)
	}
	n.m = nil
}
