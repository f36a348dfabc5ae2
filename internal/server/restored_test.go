package server

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/snapshot"
)

// restore stops a member, writes its state to a snapshot file and makes its node the only
// member of a new cluster with this state.
func (n *node) restore() {
	n.t.Helper()
	n.stop()
	cfg := n.config()
	l := cfg.layout()
	check := func(err error) {
		n.t.Helper()
		if err != nil {
			n.t.Fatal(err)
		}
	}
	eng, err := datadir.ReadStore(l, testLogger)
	check(err)
	_, err = snapshot.Export(context.Background(), eng, "backup.db", snapshot.Options{FS: n.fs})
	check(err)
	check(eng.Close())
	check(n.fs.RemoveAll(l.DataDir))
	n.cluster.newHistory()
	n.initial, n.existing = []membership.InitialMember{{Name: n.name, PeerURLs: []string{n.url}}}, false
	founders, cluster, err := membership.Founders(n.initial, "restored")
	check(err)
	check(datadir.RestoreInto(context.Background(), l, datadir.Restore{File: "backup.db", LocalID: founders[0].ID, ClusterID: cluster, Founders: founders},
		datadir.Options{Version: membership.Own, Logger: testLogger}))
}

// Members that join a cluster whose state did not result from its log get this state, not just
// the result of the log.
func TestJoinRestored(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(n *node)
	}{
		{"restored", func(n *node) {}},
		{"restored, handed to etcd and taken over", func(n *node) { n.handOver(nil) }},
		{"restored, written to, handed to etcd and taken over", func(n *node) {
			n.mustStart()
			n.ready()
			n.put("later", "v")
			n.stop()
			n.handOver(nil)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, 1, calm)
			n := c.nodes[0]
			for i := range 20 {
				n.put(fmt.Sprintf("k/%d", i), "v")
			}
			n.restore()
			tc.before(n)
			n.mustStart()
			n.ready()
			n.put("new", "v")
			for i := range 2 {
				joined, _ := c.join(fmt.Sprintf("joined%d", i), n, false)
				joined.mustStart()
				joined.ready()
				for _, k := range []string{"k/0", "k/19", "new"} {
					if got := joined.get(k); got != "v" {
						t.Errorf("%s has %s = %q", joined.name, k, got)
					}
				}
			}
			c.sameHash()
		})
	}
}

// The log of a restored member is useless without its store.
func TestRestoredWithoutStore(t *testing.T) {
	for _, runs := range []bool{false, true} {
		c := newCluster(t, 1, nil)
		n := c.nodes[0]
		n.put("k", "v")
		n.restore()
		if runs {
			n.mustStart()
			n.ready()
			n.stop()
		}
		n.m = nil
		if err := n.fs.RemoveAll("data/member/store"); err != nil {
			t.Fatal(err)
		}
		err := n.start()
		if err == nil || !strings.Contains(err.Error(), "there is no store in data/member/store") || !strings.Contains(err.Error(), "begins at entry 2") {
			t.Fatalf("started: %v", err)
		}
	}
}

// What etcd had in its store and not in its log, such as a membership that was repaired,
// reaches members that join after the directory was taken over.
func TestJoinTakenOver(t *testing.T) {
	c := newCluster(t, 1, calm)
	n := c.nodes[0]
	last := n.put("k", "v")
	n.stop()
	n.handOver(func(b engine.Batch) {
		record(t, b, last+1, &mvccpb.KeyValue{Key: []byte("only in the store"), CreateRevision: int64(last + 1), ModRevision: int64(last + 1), Version: 1, Value: []byte("kept")})
	})
	n.mustStart()
	n.ready()
	joined, _ := c.join("joined", n, false)
	joined.mustStart()
	joined.ready()
	if got := joined.get("only in the store"); got != "kept" {
		t.Errorf("the member that has joined has %q", got)
	}
	c.sameHash()
}
