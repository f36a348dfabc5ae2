package server

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"quorate/internal/engine/mem"
	"quorate/internal/snapshot"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A snapshot for a client takes no room on the disk of the member, has the announced length, and
// contains the state at the time of the request. Closed early, it releases that state.
func TestSnapshotFileTakesNoRoom(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	for i := range 300 {
		n.put(fmt.Sprintf("k%d", i), strings.Repeat("v", 4000))
	}
	files := func() string {
		t.Helper()
		names, err := n.fs.List(n.m.replica.layout().Snap())
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return fmt.Sprint(names)
	}
	before := files()
	f, size, err := n.m.Maintenance.SnapshotFile(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	n.put("k0", "later")
	b := make([]byte, size/2)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatal(err)
	}
	if now := files(); now != before {
		t.Errorf("while it is sent, there are %s, before %s", now, before)
	}
	rest, err := io.ReadAll(f)
	if err != nil || int64(len(b)+len(rest)) != size {
		t.Fatalf("%d bytes, announced were %d; %v", len(b)+len(rest), size, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	out, err := fs.Create("db", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	out.Write(rest)
	out.Close()
	meta, err := snapshot.Read(context.Background(), "db", mem.New(), snapshot.Options{FS: fs})
	if err != nil || meta.ConsistentIndex >= n.m.replica.mach().Applied() {
		t.Errorf("the database is of index %d, applied is %d; %v", meta.ConsistentIndex, n.m.replica.mach().Applied(), err)
	}

	early, _, err := n.m.Maintenance.SnapshotFile(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(early, b[:10]); err != nil {
		t.Fatal(err)
	}
	if err := early.Close(); err != nil {
		t.Fatal(err)
	}
	if f, _, err := func() (io.ReadCloser, int64, error) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return n.m.Maintenance.SnapshotFile(ctx)
	}(); err == nil {
		f.Close()
	}
	n.stop() // would wait for open readers
}
