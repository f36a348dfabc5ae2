package server

import (
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"quorate/internal/ids"
	"quorate/internal/mvcc"
)

// The leader compacts for all members, and its successor continues.
func TestAutoCompaction(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Upkeep.AutoCompaction.Period = 100 * time.Millisecond
		cfg.Logger = zap.New(core)
	})
	compacted := func(rev ids.Revision) {
		t.Helper()
		for _, n := range c.nodes {
			eventually(t, n.name+" has forgotten the revision", func() bool {
				_, err := n.m.KV.Range(background(t), &pb.RangeRequest{Key: []byte("k"), Revision: int64(rev), Serializable: true})
				return errors.Is(err, mvcc.ErrCompacted)
			})
		}
	}
	rev := c.leader().put("k", "v")
	c.leader().put("k", "v2")
	compacted(rev)
	c.moveTo(c.follower())
	rev = c.leader().put("k", "v3")
	c.leader().put("k", "v4")
	compacted(rev)
	for _, msg := range []string{"starting auto periodic compaction", "completed auto periodic compaction"} {
		eventually(t, "two lines: "+msg, func() bool { return logs.FilterMessage(msg).Len() >= 2 })
	}
	if got := c.leader().get("k"); got != "v4" {
		t.Errorf("k is %q", got)
	}
}
