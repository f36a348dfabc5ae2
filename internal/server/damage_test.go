package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/raftlog"
)

// contents is all data that a member serves.
type contents struct {
	now, past []string // keys, values and revisions
	hash      uint32
	leases    []string
	alarms    string
	members   string
}

// contents reads all data; err is a read error.
func (m *Member) contents(ctx context.Context, past ids.Revision) (c contents, err error) {
	list := func(rev ids.Revision) (kvs []string, err error) {
		res, err := m.KV.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: int64(rev)})
		if err != nil {
			return nil, err
		}
		for _, kv := range res.KVs {
			kvs = append(kvs, string(kv))
		}
		return kvs, nil
	}
	if c.now, err = list(0); err != nil {
		return c, err
	}
	if c.past, err = list(past); err != nil {
		return c, err
	}
	h, err := m.Maintenance.HashKV(ctx, 0)
	if err != nil {
		return c, err
	}
	c.hash = h.Hash
	ids, err := m.Leases.LeaseLeases(ctx)
	if err != nil {
		return c, err
	}
	for _, x := range ids.Leases {
		id := x.ID
		l, err := m.Leases.TimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
		if err != nil {
			return c, err
		}
		c.leases = append(c.leases, fmt.Sprintf("%d %d %q", id, l.GrantedTTL, l.Keys))
	}
	c.alarms = fmt.Sprint(m.Maintenance.Alarms())
	c.members = fmt.Sprint(m.cluster.Members())
	return c, nil
}

// files lists the files below dir.
func files(t *testing.T, fs vfs.FS, dir string) (all []string) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		if st, err := fs.Stat(path); err != nil {
			t.Fatal(err)
		} else if st.IsDir() {
			all = append(all, files(t, fs, path)...)
		} else {
			all = append(all, path)
		}
	}
	return all
}

// copyDisk copies a disk and lets f change one file.
func copyDisk(t *testing.T, from vfs.FS, changed string, f func([]byte)) *vfs.MemFS {
	t.Helper()
	to := vfs.NewMem()
	for _, path := range files(t, from, "") {
		in, err := from.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		in.Close()
		if err != nil {
			t.Fatal(err)
		}
		if path == changed {
			f(b)
		}
		if err := to.MkdirAll(to.PathDir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		out, err := to.Create(path, vfs.DiskWriteCategory("member"))
		if err == nil {
			_, err = out.Write(b)
		}
		if err == nil {
			err = out.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// names reports whether an error names the damaged file.
func names(err error) bool {
	var inLog *raftlog.CorruptError
	var inStore *engine.CorruptionError
	switch {
	case errors.As(err, &inLog):
		return inLog.File != ""
	case errors.As(err, &inStore):
		return inStore.File != ""
	}
	return false
}

// For any changed byte in any file of a member, the member either names the damaged file or
// serves exactly the same data as before.
func TestChangedByteAnywhere(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	ctx := background(t)
	flush := func() {
		t.Helper()
		if err := n.m.replica.mach().Engine().Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	lease, err := n.m.Leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 77, TTL: 3600})
	if err != nil {
		t.Fatal(err)
	}
	var past ids.Revision
	for i := range 400 {
		past = n.put(fmt.Sprintf("k/%03d", i%150), strings.Repeat(fmt.Sprint(i), i%40))
		if i%120 == 60 {
			flush()
		}
	}
	n.putReq(&pb.PutRequest{Key: []byte("leased"), Lease: lease.ID})
	n.alarm(&pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 5, Alarm: pb.AlarmType_NOSPACE})
	n.alarm(&pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 5, Alarm: pb.AlarmType_NOSPACE})
	if _, err := n.m.KV.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k/003"), RangeEnd: []byte("k/009")}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.m.KV.Compact(ctx, &pb.CompactionRequest{Revision: int64(past - 100), Physical: true}); err != nil {
		t.Fatal(err)
	}
	flush()
	for i := range 30 { // the newest entries are only in the log
		n.put(fmt.Sprintf("k/%03d", i), strings.Repeat("\x00", 40*i))
	}
	// Nothing proves yet that the last write was synced, so damage in it counts as a torn
	// write. The write does not change the compared data.
	n.alarm(&pb.AlarmRequest{Action: pb.AlarmRequest_GET})
	if err := n.m.replica.layout().Use(n.m.replica.storeDir()); err != nil { // as after a snapshot
		t.Fatal(err)
	}
	want, err := n.m.contents(ctx, past)
	if err != nil {
		t.Fatal(err)
	}
	disk := n.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{}) // drop what was not synced
	n.stop()
	n.m = nil

	all := slices.DeleteFunc(files(t, disk, "data"), func(path string) bool { return disk.PathBase(path) == "README" }) // only for people
	slices.Sort(all)
	t.Logf("%d files: %s", len(all), strings.Join(all, " "))
	size := func(path string) int {
		st, err := disk.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return int(st.Size())
	}
	const trials = 500
	rng := rand.New(rand.NewPCG(2026, 7))
	detected, harmless, byFile := 0, 0, map[string]int{}
	for range trials {
		path := all[rng.IntN(len(all))]
		if size(path) == 0 {
			continue
		}
		at, x := rng.IntN(size(path)), byte(1+rng.IntN(255))
		if rng.IntN(2) == 0 {
			x = 1 << rng.IntN(8)
		}
		what := fmt.Sprintf("%s, byte %d of %d changed by %#x", path, at, size(path), x)
		cfg := n.config()
		cfg.FS = copyDisk(t, disk, path, func(b []byte) { b[at] ^= x })
		got, err := serve(cfg, past)
		switch {
		case err == nil && reflect.DeepEqual(got, want):
			harmless++
		case err == nil:
			t.Fatalf("%s: it serves other data", what)
		case !names(err):
			t.Errorf("%s: the error does not name a file: %v", what, err)
		default:
			detected++
			byFile[path]++
			if !strings.Contains(err.Error(), disk.PathBase(path)) {
				t.Errorf("%s: the error names another file: %v", what, err)
			}
		}
	}
	t.Logf("%d detected, %d harmless; detected by file: %v", detected, harmless, byFile)
	if detected < trials/4 || harmless == 0 {
		t.Errorf("%d of %d changes were detected, %d changed nothing", detected, trials, harmless)
	}
}

// serve starts a member, reads all data and stops it.
func serve(cfg Config, past ids.Revision) (contents, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := Open(ctx, cfg)
	if err != nil {
		return contents{}, err
	}
	m.Start()
	defer m.Stop()
	select {
	case <-m.Ready():
	case <-m.replica.Failed():
		return contents{}, m.replica.Err()
	case <-ctx.Done():
		return contents{}, ctx.Err()
	}
	c, err := m.contents(ctx, past)
	if err == nil && m.replica.Err() != nil {
		err = m.replica.Err()
	}
	return c, err
}
