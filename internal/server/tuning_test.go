package server

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	dto "github.com/prometheus/client_model/go"

	"quorate/internal/apply"
	"quorate/internal/engine/pebble"
	"quorate/internal/metrics"
)

// With a limit of one, each pending entry is applied in its own batch.
func TestApplyBatchIsLimited(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.ApplyBatch = 1 })
	n := c.leader()
	commits := func() uint64 {
		var m dto.Metric
		if err := metrics.DiskBackendCommitDurationSeconds.Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.Histogram.GetSampleCount()
	}
	before := commits()
	const puts = 60
	var wg sync.WaitGroup
	for i := range puts {
		wg.Go(func() { n.put(fmt.Sprintf("k/%d", i), "v") })
	}
	wg.Wait()
	if got := commits() - before; got < puts {
		t.Errorf("%d commits of the engine for %d entries", got, puts)
	}
	for i := range puts {
		if n.get(fmt.Sprintf("k/%d", i)) != "v" {
			t.Errorf("k/%d is not there", i)
		}
	}
}

// Applied entries reach the engine's files at the interval, long before the log is truncated.
func TestStoreIsFlushedByTime(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Upkeep.FlushInterval = 20 * time.Millisecond })
	n := c.leader()
	n.put("k", "v")
	wrote := n.m.replica.mach().Applied()
	eventually(t, "the store on disk has it", func() bool {
		disk := n.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{}) // as a crash would leave it
		eng, err := pebble.Open(n.m.replica.storeDir(), pebble.Options{FS: disk, Logger: testLogger})
		if err != nil {
			t.Fatal(err)
		}
		defer eng.Close()
		at, _, err := apply.Position(eng)
		if err != nil {
			t.Fatal(err)
		}
		return at >= wrote
	})
}

// A store that promises to free enough is compacted at start, another one is not.
func TestDefragmentAtStart(t *testing.T) {
	for _, tc := range []struct {
		threshold int64
		want      bool
	}{{1, true}, {1 << 40, false}} {
		defrags := func() uint64 {
			var m dto.Metric
			if err := metrics.DiskBackendDefragDurationSeconds.Write(&m); err != nil {
				t.Fatal(err)
			}
			return m.Histogram.GetSampleCount()
		}
		c := newCluster(t, 1, func(cfg *Config) { cfg.Upkeep.DefragThreshold = tc.threshold })
		n := c.leader()
		for i := range 300 {
			n.put("k", fmt.Sprint(i))
		}
		rev := n.put("k", "last")
		c.compact(rev)
		before := defrags()
		n.stop()
		n.mustStart()
		n.ready()
		if tc.want {
			eventually(t, "the store is compacted", func() bool { return defrags() > before })
		} else if n.put("k", "again"); defrags() != before {
			t.Error("the store was compacted")
		}
	}
}
