package datadir

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"

	"quorate/internal/command"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/snapshot"
)

func entry(t *testing.T, r *pb.InternalRaftRequest) []byte {
	t.Helper()
	r.Header = &pb.RequestHeader{ID: 7}
	b, err := command.EncodeRequest(r)
	must(t, err)
	return b
}

// v2Version is an entry in which etcd before 3.5 sets the cluster version.
func v2Version(v string) []byte {
	b := append([]byte{0x08, 7, 0x12, 3}, "PUT"...)
	b = append(append(b, 0x1a, 10), "/0/version"...)
	return append(append(b, 0x22, byte(len(v))), v...)
}

// After a kill -9 the version of the cluster may be in the log only.
func TestLeaveByTheVersionInTheLog(t *testing.T) {
	type requests = map[ids.Index][]byte
	version := func(v string) []byte {
		return entry(t, &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: v}})
	}
	downgrade := func(v string) []byte {
		return entry(t, &pb.InternalRaftRequest{DowngradeInfoSet: &membershippb.DowngradeInfoSetRequest{Enabled: v != "", Ver: v}})
	}
	put := entry(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k")}})
	two := []ids.Member{other}
	for name, c := range map[string]struct {
		stored   string
		commit   ids.Index
		voters   []ids.Member
		requests requests
		target   uint64 // minor
		want     []string
		version  string // in etcd's files
	}{
		"raised":                      {stored: "3.6.0", requests: requests{22: version("3.7.0")}, target: 6, want: []string{"the cluster's version is 3.7", "downgrade enable 3.6"}},
		"raised, which 3.7 can take":  {stored: "3.6.0", requests: requests{22: version("3.7.0")}, target: 7, version: "3.7.0"},
		"raised by a v2 request":      {stored: "3.5.0", requests: requests{22: v2Version("3.6.0")}, target: 5, want: []string{"the cluster's version is 3.6", "no downgrade", "etcdutl backup"}},
		"from 3.7 to 3.5":             {stored: "3.5.0", requests: requests{22: version("3.7.0")}, target: 5, want: []string{"the cluster's version is 3.7", "no downgrade", "etcdutl backup"}},
		"lowered":                     {stored: "3.7.0", requests: requests{21: downgrade("3.6.0"), 22: put, 23: version("3.6.0"), 24: put}, target: 6, version: "3.6.0"},
		"not lowered yet":             {stored: "3.7.0", requests: requests{21: downgrade("3.6.0"), 22: put}, target: 6, want: []string{"the cluster's version is 3.7", "start the member, wait"}},
		"raised and lowered":          {stored: "3.6.0", requests: requests{21: version("3.7.0"), 22: downgrade("3.6.0"), 23: version("3.6.0")}, target: 6, want: []string{"entry 21", "start the member once"}},
		"lowered and raised":          {stored: "3.7.0", requests: requests{21: downgrade("3.6.0"), 22: version("3.6.0"), 23: downgrade(""), 24: version("3.7.0")}, target: 6, want: []string{"the cluster's version is 3.7", "downgrade enable 3.6"}},
		"raised, perhaps":             {stored: "3.6.0", commit: 21, voters: two, requests: requests{22: version("3.7.0")}, target: 6, want: []string{"entry 22", "not known to be committed", "start the member once"}},
		"lowered, perhaps":            {stored: "3.7.0", commit: 21, voters: two, requests: requests{21: downgrade("3.6.0"), 22: version("3.6.0")}, target: 6, want: []string{"entry 22", "not known to be committed", "start the member once"}},
		"lowered, as is known":        {stored: "3.7.0", commit: 22, voters: two, requests: requests{21: downgrade("3.6.0"), 22: version("3.6.0")}, target: 6, version: "3.6.0"},
		"perhaps, which 3.7 can take": {stored: "3.6.0", commit: 21, voters: two, requests: requests{22: version("3.7.0")}, target: 7, version: "3.6.0"},
		"3.5 during a downgrade":      {stored: "3.5.0", requests: requests{22: downgrade("3.4.0")}, target: 5, want: []string{"a downgrade to 3.4.0", "downgrade cancel"}},
		"no version":                  {stored: "3.6.0", requests: requests{21: version("seven"), 22: downgrade("six"), 23: put}, target: 6, version: "3.6.0"},
	} {
		t.Run(name, func(t *testing.T) {
			l := Layout{FS: vfs.NewMem(), DataDir: "data"}
			d := plain
			d.clusterVersion, d.storageVersion, d.requests, d.voters = c.stored, c.stored, c.requests, c.voters
			if c.stored == "3.5.0" {
				d.storageVersion = ""
			}
			d.make(t, l)
			must(t, takeOver(l))
			if c.commit > 0 {
				restate(t, l, c.commit)
			}
			before := sumStore(t, l)
			target := membership.Version{Major: 3, Minor: c.target}
			err := LeaveBeside(ctx, l, target, opt)
			if len(c.want) > 0 {
				if err == nil {
					t.Fatal("not refused")
				}
				for _, w := range c.want {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("%q does not say %q", err, w)
					}
				}
				return
			}
			must(t, err)
			eng := mem.New()
			defer eng.Close()
			meta, err := snapshot.Read(ctx, l.DB(), eng, snapshot.Options{FS: l.FS})
			must(t, err)
			if storage := min(c.stored, c.version); meta.ClusterVersion != c.version || meta.StorageVersion != storage {
				t.Errorf("etcd's store is of cluster version %q and storage version %q, want %q and %q", meta.ClusterVersion, meta.StorageVersion, c.version, storage)
			}
			s, err := snapshot.LoadSnap(l.FS.PathJoin(l.Snap(), snapshot.SnapName(2, 20)), snapshot.Options{FS: l.FS})
			must(t, err)
			if _, _, v, err := snapshot.ParseV2Store(s.Data); err != nil || v != c.version {
				t.Errorf("the .snap file has version %q, %v", v, err)
			}
			p, err := l.readPointer()
			must(t, err)
			ours, err := opt.withDefaults().opener(l)(l.FS.PathJoin(l.Member(), p.store))
			must(t, err)
			defer ours.Close()
			if sum(t, ours) != before {
				t.Error("our store has changed")
			}
		})
	}
}

// The way out of a store with data of the v2 API exists in the cluster as it is.
func TestLeaveV2NamesAWayThatExists(t *testing.T) {
	for version, want := range map[string]string{"3.5.0": "--target-version 3.5", "3.7.0": "etcdutl backup"} {
		l := Layout{FS: vfs.NewMem(), DataDir: "data"}
		d := plain
		d.storageVersion, d.clusterVersion, d.snap = "", "3.5.0", []byte(v2Keys)
		d.requests = map[ids.Index][]byte{22: entry(t, &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: version}})}
		d.make(t, l)
		must(t, takeOver(l))
		_, err := Leave(ctx, l, own, opt)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "--target-version 3.5") != (version == "3.5.0") {
			t.Errorf("at version %s: %v", version, err)
		}
	}
}
