package datadir

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/engine/mem"
	"quorate/internal/metrics"
	"quorate/internal/raftlog"
)

// A change of any byte of a received snapshot before it is imported is detected, whatever
// it means: etcd's file has no checksums.
func TestReceivedFileIsChecked(t *testing.T) {
	fs := vfs.NewMem()
	h := Home{Layout: Layout{FS: fs, DataDir: "data"}}
	if err := fs.MkdirAll(h.Layout.Snap(), 0o700); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("state of a whole cluster "), 10_000)
	if err := h.Receive(t.Context(), 7, 1, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if err := h.Receive(t.Context(), 8, 2, strings.NewReader("another")); err != nil {
		t.Fatal(err)
	}
	files, err := h.received(7)
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	if err := h.checkReceived(t.Context(), files[0]); err != nil {
		t.Error(err)
	}
	for _, at := range []int{0, 1, 4096, len(content) / 2, len(content) - 1} {
		changed := bytes.Clone(content)
		changed[at] ^= 0x10
		f, err := fs.Create(files[0], vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, bytes.NewReader(changed)); err != nil {
			t.Fatal(err)
		}
		f.Close()
		err = h.checkReceived(t.Context(), files[0])
		if err == nil || !strings.Contains(err.Error(), files[0]) || !strings.Contains(err.Error(), "has changed on disk") {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	if err := h.Retire("data/old", 7); err != nil {
		t.Fatal(err)
	}
	if left, err := fs.List(h.Layout.Snap()); err != nil || len(left) != 1 {
		t.Errorf("%q is left, %v", left, err)
	}
}

// A store of another member or cluster is refused, whatever the file OWNER says.
func TestStoreOfAnotherMember(t *testing.T) {
	fs := vfs.NewMem()
	log, err := raftlog.Create(fs, "wal", raftlog.Metadata{NodeID: 1, ClusterID: 2}, raftlog.Options{NoBackground: true})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	eng := mem.New()
	defer eng.Close()
	own := Home{Layout: Layout{FS: fs, DataDir: "data"}, Log: log, Member: 1, Cluster: 2}
	for range 2 { // the first call marks the store, the second one finds the mark
		if err := own.CheckTogether(eng); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []Home{{Member: 3, Cluster: 2}, {Member: 1, Cluster: 3}} {
		other.Layout, other.Log = own.Layout, own.Log
		if err := other.CheckTogether(eng); err == nil || !strings.Contains(err.Error(), "do not belong together") {
			t.Errorf("member %d of cluster %d: %v", other.Member, other.Cluster, err)
		}
	}
}

// The sync of a received snapshot is timed.
func TestReceivedSyncIsTimed(t *testing.T) {
	count := func() uint64 {
		var m dto.Metric
		if err := metrics.SnapDBFsyncDurationSeconds.(prometheus.Metric).Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetHistogram().GetSampleCount()
	}
	fs := vfs.NewMem()
	h := Home{Layout: Layout{FS: fs, DataDir: "data"}}
	if err := fs.MkdirAll(h.Layout.Snap(), 0o700); err != nil {
		t.Fatal(err)
	}
	before := count()
	if err := h.Receive(t.Context(), 7, 1, strings.NewReader("state")); err != nil {
		t.Fatal(err)
	}
	if got := count() - before; got != 1 {
		t.Errorf("%d syncs in etcd_snap_db_fsync_duration_seconds, want 1", got)
	}
}

// A log that is still empty is distinguished from one whose member has run.
func TestNeverRan(t *testing.T) {
	dir := t.TempDir() + "/wal"
	if NeverRan(dir) {
		t.Error("there is no log")
	}
	log, err := raftlog.Create(vfs.Default, dir, raftlog.Metadata{NodeID: 1, ClusterID: 2}, raftlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if there, err := HasLog(vfs.Default, dir); !NeverRan(dir) || !there || err != nil {
		t.Error("a log without entries")
	}
	if err := log.Append(&raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(0))}, nil, true); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if NeverRan(dir) {
		t.Error("a member that has a term has run")
	}
}
