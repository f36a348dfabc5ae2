package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/datadir"
	"quorate/internal/membership"
)

// saveState writes the state of a member as a client gets it to a file on a disk.
func (n *node) saveState(fs vfs.FS, path string) {
	n.t.Helper()
	r, _, err := n.m.Maintenance.SnapshotFile(context.Background())
	if err != nil {
		n.t.Fatal(err)
	}
	defer r.Close()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = io.Copy(f, r)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// A member whose store is damaged gets the state of a peer and goes on as the same member,
// whether its log reaches beyond that state or ends before it, with its term and its vote.
// A member whose log is damaged is refused, and nothing of it changes.
func TestRebuild(t *testing.T) {
	for _, behind := range []bool{false, true} {
		t.Run(fmt.Sprintf("log ends before the state: %v", behind), func(t *testing.T) {
			c := newCluster(t, 3, nil)
			lead, n := c.leader(), c.follower()
			for i := range 50 {
				lead.put(fmt.Sprintf("key-%d", i), "before")
			}
			c.sameHash()
			if !behind {
				lead.saveState(n.fs, "state.db")
			}
			lead.put("later", "value")
			c.sameHash()
			if err := n.m.replica.mach().Engine().Flush(context.Background()); err != nil {
				t.Fatal(err)
			}
			id, hs := n.m.replica.id, n.m.log.HardState()
			n.stop()
			n.m = nil
			if behind {
				for i := range 20 {
					lead.put(fmt.Sprintf("missed-%d", i), "while away")
				}
				lead.saveState(n.fs, "state.db")
			}
			l := datadir.Layout{FS: n.fs, DataDir: n.config().DataDir, WALDir: n.config().LogDir}
			for _, path := range files(t, n.fs, l.Member()) {
				if strings.HasSuffix(path, ".sst") {
					if err := n.fs.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := n.start(); err == nil {
				t.Fatal("the member starts without the tables of its store")
			}
			options := datadir.Options{Version: membership.Own, Logger: testLog()}
			aside, err := datadir.Rebuild(t.Context(), l, "state.db", options)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.fs.Stat(aside); err != nil {
				t.Errorf("the damaged store: %v", err)
			}
			n.mustStart()
			n.ready()
			if n.m.replica.id != id {
				t.Errorf("it is member %s now, it was %s", n.m.replica.id, id)
			}
			if got := n.m.log.HardState(); got.GetTerm() < hs.GetTerm() || got.GetTerm() == hs.GetTerm() && got.GetVote() != hs.GetVote() {
				t.Errorf("hard state %v, it was %v", got, hs)
			}
			lead.put("after", "value")
			c.sameHash()
			n.stop()
			n.m = nil
			damageLog(t, n.fs, l.WAL())
			if _, err := datadir.Rebuild(t.Context(), l, "state.db", options); !errors.Is(err, datadir.ErrLogDamaged) {
				t.Errorf("with a damaged log: %v, want ErrLogDamaged", err)
			}
		})
	}
}

// damageLog changes a byte of the first records of a log.
func damageLog(t *testing.T, fs vfs.FS, dir string) {
	t.Helper()
	for _, path := range files(t, fs, dir) {
		if !strings.HasSuffix(path, ".wal") {
			continue
		}
		f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = f.WriteAt([]byte{0xa5, 0xa5}, 120)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
