package server

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"quorate/internal/datadir"
	"quorate/internal/ids"
)

func smallLog(cfg *Config) { cfg.SnapshotCount, cfg.CatchUpEntries = 50, 20 }

// fallBehind writes until the log of every other member starts after the entries that n has
// applied, so that n needs a snapshot.
func (c *cluster) fallBehind(n *node, prefix string) (rev ids.Revision) {
	c.t.Helper()
	applied := n.m.replica.mach().Applied()
	i := 0
	for behind := 0; behind < len(c.nodes)-1; {
		behind = 0
		for _, x := range c.nodes {
			if x == n {
				continue
			}
			if first, err := x.m.log.FirstIndex(); err != nil {
				c.t.Fatal(err)
			} else if ids.Index(first) > applied+1 {
				behind++
			}
		}
		for _, x := range c.nodes {
			if x != n {
				rev = x.put(fmt.Sprintf("%s/%d", prefix, i), fmt.Sprint(i))
				i++
				break
			}
		}
	}
	return rev
}

func (n *node) installed() ids.Index {
	if !strings.HasPrefix(n.fs.PathBase(n.m.currentStoreName(n.t)), datadir.StorePrefix) {
		return 0
	}
	return n.m.logw.work.Mark()
}

func (m *Member) currentStoreName(t *testing.T) string {
	t.Helper()
	dir, err := m.replica.layout().Store()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// stores lists the directories of stores on the disk of n.
func (n *node) stores() (out []string) {
	names, err := n.fs.List("data/member")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, x := range names {
		if strings.HasPrefix(x, "store") {
			out = append(out, x)
		}
	}
	return out
}

// checkGapFree checks that a watcher has seen each revision in (from, to] of a
// prefix under which every revision wrote one key.
func checkGapFree(t *testing.T, events []*mvccpb.Event, from, to ids.Revision) {
	t.Helper()
	next := from + 1
	for _, e := range events {
		if ids.Revision(e.Kv.ModRevision) != next {
			t.Fatalf("event of revision %d, want %d", e.Kv.ModRevision, next)
		}
		next++
	}
	if next <= to {
		t.Fatalf("events end at %d, want %d", next-1, to)
	}
}

// readers read locally until stop is called; no read may fail.
func (n *node) readers(count int) (stop func()) {
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range count {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := n.m.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0"), Limit: 10, Serializable: true}); err != nil {
					n.t.Errorf("local read: %v", err)
					return
				}
			}
		})
	}
	return func() { close(done); wg.Wait() }
}

func TestFollowerCatchesUpBySnapshot(t *testing.T) {
	c := newCluster(t, 3, smallLog)
	n := c.follower()
	start := c.leader().put("k/start", "")
	eventually(t, "the follower has the first key", func() bool { return n.m.replica.Rev() == start })
	w := n.watch("k/", 0) // survives both exchanges
	for round := range 2 {
		before := n.m.currentStoreName(t)
		c.isolate(n)
		c.fallBehind(n, fmt.Sprintf("k/isolated%d", round))
		var other *node
		for _, x := range c.nodes {
			if x != n {
				other = x
			}
		}
		l := other.load(fmt.Sprintf("k/load%d", round), 3)
		eventually(t, "load runs", func() bool { return l.count() > 20 })
		readers := n.readers(4) // local reads continue during the exchange
		n.heal()
		eventually(t, "a snapshot is installed", func() bool { return n.m.currentStoreName(t) != before && n.m.logw.work.Mark() > 0 })
		count := l.count()
		eventually(t, "load goes on", func() bool { return l.count() > count+20 })
		readers()
		l.end(t, n, fmt.Sprintf("k/load%d", round))
		for _, err := range l.errs {
			t.Errorf("a writer got %v", err)
		}
		last := other.put("k/last", "")
		w.until(last)
		checkGapFree(t, w.events, start, last)
		if got := n.get("k/last"); got != "" || n.m.replica.Rev() < last {
			t.Fatalf("revision %d, want %d", n.m.replica.Rev(), last)
		}
		c.sameHash()
		eventually(t, "the replaced store is gone", func() bool { return len(n.stores()) == 1 })
	}
	if err := n.m.replica.Err(); err != nil {
		t.Fatal(err)
	}
	// After an installation, a member can restart and lead like any other.
	n.stop()
	c.leader().put("k/while-down", "")
	n.mustStart()
	n.ready()
	if err := c.leader().m.Maintenance.MoveLeader(background(t), n.m.replica.id); err != nil && c.leader() != n {
		t.Fatal(err)
	}
	n.put("k/led", "x")
	c.sameHash()
}

// A list or a backup that a client has begun to read when a snapshot replaces the store is
// complete. A reader that comes late finds the new state. After them the old store is gone.
func TestReplacedStoreIsReadToTheEnd(t *testing.T) {
	const keys, size = 40, 50 << 10 // more than a list reads at once
	for what, open := range map[string]func(t *testing.T, m *Member) (finish func()){
		"backup": func(t *testing.T, m *Member) func() {
			r, length, err := m.Maintenance.SnapshotFile(background(t))
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if n, err := io.Copy(io.Discard, r); err != nil || n != length {
					t.Errorf("%d bytes of %d: %v", n, length, err)
				}
				r.Close()
			}
		},
		"list": func(t *testing.T, m *Member) func() {
			r, err := m.KV.List(background(t), &pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0"), Serializable: true})
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				got := 0
				for last := false; !last; {
					var elems []byte
					if elems, last, err = r.Next(); err != nil {
						t.Fatalf("after %d bytes: %v", got, err)
					}
					got += len(elems)
				}
				if got < keys*size {
					t.Errorf("%d bytes", got)
				}
				r.Close()
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t, 3, smallLog)
			n := c.follower()
			var rev ids.Revision
			for i := range keys {
				rev = c.leader().put(fmt.Sprintf("k/%d", i), strings.Repeat("x", size))
			}
			eventually(t, "the follower has the keys", func() bool { return n.m.replica.Rev() == rev })
			before, late := n.m.currentStoreName(t), n.m.replica.kv() // the late reader pauses here
			finish := open(t, n.m)
			c.isolate(n)
			rev = c.fallBehind(n, "k/isolated")
			n.heal()
			eventually(t, "a snapshot is installed", func() bool { return n.m.currentStoreName(t) != before && n.m.replica.Rev() >= rev })
			eventually(t, "late readers find the new state", func() bool {
				v := late.View()
				defer v.Close()
				if res, err := v.Range(&pb.RangeRequest{Key: []byte("k/0")}); err != nil || len(res.KVs) != 1 {
					t.Errorf("a late reader: %v", err)
				}
				return v.Rev() >= rev
			})
			finish()
			eventually(t, "the replaced store is gone", func() bool { return len(n.stores()) == 1 })
		})
	}
}

// A follower that was down installs a snapshot right after its start.
func TestStoppedFollowerCatchesUpBySnapshot(t *testing.T) {
	c := newCluster(t, 3, smallLog)
	n := c.follower()
	n.stop()
	rev := c.fallBehind(n, "k/down")
	n.mustStart()
	n.ready()
	w := n.watch("k/down/", 1)
	w.until(rev)
	if len(n.stores()) != 1 && n.installed() == 0 {
		t.Fatalf("no snapshot was installed: %v", n.stores())
	}
	c.sameHash()
}

// stageFS clones the disk, as a crash would leave it, when the file that names the store in
// use has become durable.
type stageFS struct {
	*vfs.MemFS
	renamed  atomic.Bool
	pictures atomic.Pointer[vfs.MemFS]
	taken    func() // nothing after the clone may be acknowledged
}

func (f *stageFS) Rename(from, to string) error {
	err := f.MemFS.Rename(from, to)
	if f.PathBase(to) == "STORE" {
		f.renamed.Store(true)
	}
	return err
}

func (f *stageFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.MemFS.OpenDir(name)
	if err != nil || !f.renamed.Load() || f.PathBase(name) != "member" {
		return d, err
	}
	return stageDir{d, f}, nil
}

type stageDir struct {
	vfs.File
	f *stageFS
}

func (d stageDir) Sync() error {
	err := d.File.Sync()
	if d.f.renamed.Swap(false) {
		d.f.taken()
		d.f.pictures.Store(d.f.MemFS.CrashClone(vfs.CrashCloneCfg{}))
	}
	return err
}

// A crash between the exchange of the store and the reset of the log: the next start completes
// the installation.
func TestCrashBetweenExchangeAndReset(t *testing.T) {
	c := newCluster(t, 3, smallLog)
	n := c.follower()
	n.stop()
	rev := c.fallBehind(n, "k")
	disk := &stageFS{MemFS: n.fs.(*vfs.MemFS), taken: func() { c.isolate(n) }}
	n.fs = disk
	n.mustStart()
	eventually(t, "the store is exchanged", func() bool { return disk.pictures.Load() != nil })
	n.handler.Store(nil)
	n.m.Stop()

	n.fs = disk.pictures.Load()
	m, err := Open(background(t), n.config())
	if err != nil {
		t.Fatalf("open after the crash: %v", err)
	}
	applied := m.replica.mach().Applied()
	if last, _ := m.log.LastIndex(); ids.Index(last) != applied {
		t.Errorf("the log ends at %d, the store at %d", last, applied)
	}
	if m.log.Mark().Index != applied {
		t.Errorf("the mark is at %d, want %d", m.log.Mark().Index, applied)
	}
	if got := n.stores(); len(got) != 1 {
		t.Errorf("stores on disk: %v, want the one in use", got)
	}
	if left := files(t, n.fs, "data/member/snap"); len(left) != 2 || !strings.HasSuffix(left[0], "README") || !strings.HasSuffix(left[1], "README") {
		t.Errorf("left in snap: %v", left) // apart from the files that keep etcd from starting
	}
	m.Start()
	m.Stop()
	n.m.replica.id = m.replica.id
	n.heal()
	n.mustStart()
	n.ready()
	eventually(t, "caught up", func() bool { return n.m.replica.Rev() >= rev })
	c.sameHash()
}

// A store that is ahead of its log for any other reason is rejected.
func TestStoreAheadOfLog(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	n.put("k", "v")
	old := n.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
	for i := range 100 {
		n.put(fmt.Sprint(i), "v")
	}
	n.stop()
	// The earlier log with the later store.
	if err := n.fs.RemoveAll("data/member/wal"); err != nil {
		t.Fatal(err)
	}
	if _, err := vfs.Clone(old, n.fs, "data/member/wal", "data/member/wal"); err != nil {
		t.Fatal(err)
	}
	err := n.start()
	if err == nil || !strings.Contains(err.Error(), "log files are missing") {
		t.Fatalf("open: %v, want that log files are missing", err)
	}
}

// The log is truncated up to what is flushed, and a restart, also after a crash, replays from
// there.
func TestLogTruncation(t *testing.T) {
	c := newCluster(t, 1, smallLog)
	n := c.nodes[0]
	total := 0
	for round := range 3 {
		first, err := n.m.log.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		moved := func() bool { f, err := n.m.log.FirstIndex(); return err == nil && f > first }
		for !moved() {
			n.put(fmt.Sprintf("k/%d", total), "v")
			total++
		}
		if f, _ := n.m.log.FirstIndex(); ids.Index(f) > n.m.replica.mach().Applied()-20+1 {
			t.Fatalf("log begins at %d with %d applied: nothing is left for slow followers", f, n.m.replica.mach().Applied())
		}
		if round%2 == 0 {
			n.crash()
		} else {
			n.stop()
		}
		n.mustStart()
		n.ready()
		if f, _ := n.m.log.FirstIndex(); f < first {
			t.Fatalf("after the restart the log begins at %d, before it began at %d", f, first)
		}
		if n.m.logw.work.Mark() == 0 {
			t.Fatal("after the restart there is no mark")
		}
		res := n.rangeOf(&pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0"), CountOnly: true})
		if res.Count != int64(total) {
			t.Fatalf("%d keys, want %d", res.Count, total)
		}
	}
}
