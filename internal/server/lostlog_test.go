package server

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A follower that comes back with an empty directory, or with an old copy of it, exits with the
// reason and instructions as soon as its leader reports what it has acknowledged.
func TestLostLog(t *testing.T) {
	for _, lost := range []string{"emptied", "emptied founder", "old copy"} {
		t.Run(lost, func(t *testing.T) {
			c := newCluster(t, 3, calm)
			lead, n := c.leader(), c.follower()
			lead.put("before", "v")
			c.sameHash()
			disk := vfs.FS(vfs.NewCrashableMem())
			if lost == "old copy" {
				disk = n.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
			}
			for range 10 {
				lead.put("after", "v")
			}
			c.sameHash()
			id := n.m.replica.id
			n.crash()
			n.fs, n.existing = disk, lost != "emptied founder"
			err, why := n.start(), "has already been bootstrapped"
			if lost == "old copy" {
				if err != nil {
					t.Fatal(err)
				}
				<-n.m.replica.Failed()
				err, why = n.m.replica.Err(), "data directory is lost, or it is an old copy"
			}
			if err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "etcdctl member remove "+id.String()) {
				t.Errorf("ended with %v", err)
			}
			lead.put("k", "v")
		})
	}
}
