package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/datadir"
	"quorate/internal/engine/pebble"
)

// faultyFS fails operations that need room on the disk, for the files that part names, while
// it is set.
type faultyFS struct {
	*vfs.MemFS
	mu    sync.Mutex
	part  string
	err   error
	fails atomic.Int64
	// strict also fails operations that need no room because the file already has it.
	strict atomic.Bool
}

func (f *faultyFS) set(part string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.part, f.err = part, err
	f.fails.Store(0)
}

func (f *faultyFS) check(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || !strings.Contains(name, f.part) {
		return nil
	}
	f.fails.Add(1)
	return f.err
}

// change is check for an operation that needs room, but no file descriptor.
func (f *faultyFS) change(name string) error {
	if f.lacksDescriptors() {
		return nil
	}
	return f.check(name)
}

// look is check for an operation that needs a file descriptor, but no room.
func (f *faultyFS) look(name string) error {
	if !f.lacksDescriptors() {
		return nil
	}
	return f.check(name)
}

func (f *faultyFS) lacksDescriptors() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err == syscall.EMFILE
}

func (f *faultyFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := f.look(name); err != nil {
		return nil, err
	}
	return f.MemFS.Open(name, opts...)
}

func (f *faultyFS) OpenDir(name string) (vfs.File, error) {
	if err := f.look(name); err != nil {
		return nil, err
	}
	return f.MemFS.OpenDir(name)
}

func (f *faultyFS) List(name string) ([]string, error) {
	if err := f.look(name); err != nil {
		return nil, err
	}
	return f.MemFS.List(name)
}

func (f *faultyFS) wrap(name string, open func() (vfs.File, error)) (vfs.File, error) {
	if err := f.check(name); err != nil {
		return nil, err
	}
	file, err := open()
	if err != nil {
		return nil, err
	}
	return &faultyFile{file, f, name}, nil
}

func (f *faultyFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.wrap(name, func() (vfs.File, error) { return f.MemFS.Create(name, c) })
}

func (f *faultyFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.wrap(name, func() (vfs.File, error) { return f.MemFS.OpenReadWrite(name, c, opts...) })
}

func (f *faultyFS) Rename(from, to string) error {
	if err := f.change(to); err != nil {
		return err
	}
	return f.MemFS.Rename(from, to)
}

func (f *faultyFS) MkdirAll(dir string, perm os.FileMode) error {
	if err := f.change(dir); err != nil {
		return err
	}
	return f.MemFS.MkdirAll(dir, perm)
}

type faultyFile struct {
	vfs.File
	fs   *faultyFS
	name string
}

func (f *faultyFile) Write(b []byte) (int, error) {
	if err := f.fs.change(f.name); err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.fs.change(f.name); err != nil {
		if st, serr := f.Stat(); !errors.Is(err, syscall.ENOSPC) || serr != nil || f.fs.strict.Load() || off+int64(len(b)) > st.Size() {
			return 0, err
		} // existing bytes need no room
	}
	return f.File.WriteAt(b, off)
}

func (f *faultyFile) Preallocate(off, n int64) error {
	if err := f.fs.change(f.name); err != nil {
		return err
	}
	return f.File.Preallocate(off, n)
}

func newFaultyCluster(t *testing.T, size int, tune func(*Config)) (*cluster, map[*node]*faultyFS) {
	t.Helper()
	old := transferPause
	transferPause = 50 * time.Millisecond
	t.Cleanup(func() { transferPause = old })
	disks := map[*node]*faultyFS{}
	c := prepareCluster(t, size, tune)
	for _, n := range c.nodes {
		disks[n] = &faultyFS{MemFS: vfs.NewCrashableMem()}
		n.fs = disks[n]
	}
	t.Cleanup(func() {
		for _, d := range disks {
			d.set("", nil)
		}
	})
	return c, disks
}

func (d *faultyFS) full(t *testing.T, part string) {
	t.Helper()
	d.set(part, syscall.ENOSPC)
}

// meets waits until operations have found no room more than once.
func (d *faultyFS) meets(t *testing.T, what string) {
	t.Helper()
	eventually(t, what+" finds no room", func() bool { return d.fails.Load() > 1 })
}

// A store that fails for a reason other than lack of room ends its member, which has
// transferred leadership by then.
func TestFailingStore(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.EROFS, syscall.EDQUOT, syscall.ENOENT} {
		t.Run(errno.Error(), func(t *testing.T) {
			c, disks := newFaultyCluster(t, 3, calm)
			c.launch()
			n := c.leader()
			n.put("k/before", "1")
			disks[n].set("/store/", errno)
			flushed := make(chan error, 1)
			go func() { flushed <- n.m.replica.mach().Engine().Flush(context.Background()) }()
			select {
			case <-n.m.replica.Failed():
			case <-time.After(patience):
				t.Fatal("the member goes on")
			}
			if err := <-flushed; !errors.Is(err, errno) {
				t.Errorf("Flush: %v, want %v", err, errno)
			}
			if n.m.replica.isLeader() {
				t.Error("the member ended as the leader")
			}
			err := n.m.replica.Err()
			if !errors.Is(err, errno) || !errors.Is(err, pebble.ErrFailed) && !errors.Is(err, pebble.ErrFatal) || !strings.Contains(err.Error(), n.m.replica.storeDir()) {
				t.Errorf("ended with %v; want %v, and the directory", err, errno)
			}
			n.stop()
			for _, x := range c.nodes {
				if x != n {
					x.put("k/after", "1")
				}
			}
		})
	}
}

// A disk that fails while its member is being opened makes Open fail: the rest of the member
// does not exist yet.
func TestFailingStoreAtStart(t *testing.T) {
	c, disks := newFaultyCluster(t, 1, nil)
	c.launch()
	n := c.nodes[0]
	n.put("k", "v")
	n.stop()
	disks[n].set("/store/", syscall.EIO)
	if err := n.start(); err == nil || !strings.Contains(err.Error(), syscall.EIO.Error()) {
		t.Fatalf("start: %v", err)
	}
}

// The same for the log, whose failed write is final.
func TestFailingLogHandsOver(t *testing.T) {
	c, disks := newFaultyCluster(t, 3, calm)
	c.launch()
	n := c.leader()
	n.put("k/before", "1")
	disks[n].set("/wal", syscall.EIO)
	go n.m.KV.Put(background(t), &pb.PutRequest{Key: []byte("k/during")}, nil)
	select {
	case <-n.m.replica.Failed():
	case <-time.After(patience):
		t.Fatal("the member goes on")
	}
	if n.m.replica.isLeader() {
		t.Error("the member ended as the leader")
	}
	n.stop()
	for _, x := range c.nodes {
		if x != n {
			x.put("k/after", "1")
		}
	}
}

// A member that is created on a full disk waits for room, and then starts.
func TestFirstStartOnFullDisk(t *testing.T) { startWithout(t, syscall.ENOSPC) }

// startWithout creates a member that finds no room, or no descriptor, at first.
func startWithout(t *testing.T, lack error) {
	for _, part := range []string{"data", "OWNER", "wal", "store"} {
		t.Run(part, func(t *testing.T) {
			c, disks := newFaultyCluster(t, 1, nil)
			d := disks[c.nodes[0]]
			d.set(part, lack)
			started := make(chan struct{})
			go func() { defer close(started); c.launch() }()
			d.meets(t, "the start")
			d.set("", nil)
			<-started
			c.nodes[0].put("k", "v")
		})
	}
}

// A truncation that finds no room for its mark completes once there is room.
func TestTruncationOnFullDisk(t *testing.T) {
	c, disks := newFaultyCluster(t, 1, func(cfg *Config) { cfg.CatchUpEntries = 20 })
	c.launch()
	n := c.nodes[0]
	for i := range 100 {
		n.put(fmt.Sprint("k", i), "v")
	}
	before, err := n.m.log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	disks[n].strict.Store(true)
	disks[n].full(t, "/wal")
	n.m.logw.truncate <- struct{}{}
	disks[n].meets(t, "the truncation")
	if err := n.m.replica.Err(); err != nil {
		t.Fatalf("the member ended: %v", err)
	}
	if n.get("k99") != "v" {
		t.Error("a key is gone")
	}
	disks[n].set("", nil)
	eventually(t, "the log is truncated", func() bool {
		first, err := n.m.log.FirstIndex()
		return err == nil && first > before
	})
	n.put("k", "v")
}

// Each step in which a follower installs a snapshot waits for room.
func TestInstallOnFullDisk(t *testing.T) {
	installWithout(t, syscall.ENOSPC, "/snap/", "/store-", "/STORE", "/wal/")
}

// installWithout lets a follower install a snapshot that finds no room, or no descriptor, at
// first.
func installWithout(t *testing.T, lack error, parts ...string) {
	for _, part := range parts {
		t.Run(strings.Trim(part, "/-"), func(t *testing.T) {
			c, disks := newFaultyCluster(t, 3, func(cfg *Config) { smallLog(cfg); calm(cfg) })
			c.launch()
			n := c.follower()
			before := n.m.currentStoreName(t)
			c.isolate(n)
			c.fallBehind(n, "k/isolated")
			d := disks[n]
			d.set(part, lack)
			n.heal()
			d.meets(t, "the installation")
			if err := n.m.replica.Err(); err != nil {
				t.Fatalf("the member ended: %v", err)
			}
			d.set("", nil)
			eventually(t, "a snapshot is installed", func() bool { return n.m.currentStoreName(t) != before && n.m.logw.work.Mark() > 0 })
			last := c.leader().put("k/after", "1")
			eventually(t, "the follower has caught up", func() bool { return n.m.replica.Rev() >= last })
			if err := n.m.replica.Err(); err != nil {
				t.Error(err)
			}
			c.sameHash()
		})
	}
}

// The part of a snapshot that was written before the disk was full is removed.
func TestReceivedPartGoes(t *testing.T) {
	fs := &faultyFS{MemFS: vfs.NewMem()}
	home := datadir.Home{Layout: datadir.Layout{FS: fs, DataDir: "data"}}
	if err := fs.MkdirAll(home.Layout.Snap(), 0o700); err != nil {
		t.Fatal(err)
	}
	body := io.MultiReader(strings.NewReader("first"), &then{func() { fs.full(t, "snap") }}, strings.NewReader("second"))
	if err := home.Receive(t.Context(), 1, 1, body); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Receive: %v", err)
	}
	if names, err := fs.List(home.Layout.Snap()); err != nil || len(names) > 0 {
		t.Errorf("%q are left (%v)", names, err)
	}
}

// then calls do in the middle of a stream.
type then struct{ do func() }

func (d *then) Read([]byte) (int, error) { d.do(); return 0, io.EOF }

// Files that a killed process left behind are gone after the next start; files that are
// retained on purpose stay.
func TestRemainsAreRemoved(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	n.put("k", "v")
	n.stop()
	remains := []string{"snap/tmp4711-1", "snap/0000000000000007.1.part", "snap/0000000000000007.0a1b2c3d.snap.db", "OWNER.tmp", "STORE.tmp",
		"store-0000000000000007", "wal/0.tmp", "wal/1.tmp"}
	kept := []string{"OWNER", "snap.etcd-0000000000000001", "wal/0000000000000000-0000000000000000.wal.broken"}
	for _, name := range append(remains, kept[1:]...) {
		f, err := n.fs.Create("data/member/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	n.mustStart()
	n.ready()
	for _, name := range remains {
		if name == "wal/0.tmp" {
			continue // the next segment is being created under this name
		}
		if _, err := n.fs.Stat("data/member/" + name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	for _, name := range kept {
		if _, err := n.fs.Stat("data/member/" + name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n.get("k") != "v" {
		t.Error("a key is gone")
	}
}
