package failure

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// newBlockDisk mounts a file system on a loop device, which can be frozen and shut down. It returns "" on a
// machine without loop devices, where nothing can be proved.
func newBlockDisk(t *testing.T, dir string) (mount string) {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		text := fmt.Sprintf("this machine has no loop devices, so nothing is proved here: %v", err)
		if *required {
			t.Fatal(text)
		}
		t.Log(text)
		return ""
	}
	image, mount := filepath.Join(dir, "disk.img"), filepath.Join(dir, "disk")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	child.Must(t, "truncate", "--size=400M", image)
	child.Must(t, "mkfs.ext4", "-q", image)
	child.Must(t, "mount", "-o", "loop", image, mount)
	t.Cleanup(func() { child.Must(t, "umount", "--lazy", mount) })
	return mount
}

// trio is a cluster of three processes.
type trio struct {
	sites   [3]*site
	procs   [3]*child.Process
	clients [3]*child.Client
}

// startTrio starts three members, the data of the first of them in data.
func startTrio(t *testing.T, data string) *trio {
	t.Helper()
	c := &trio{}
	var initial []string
	for i := range c.sites {
		c.sites[i] = newSite(t)
		initial = append(initial, fmt.Sprintf("m%d=http://%s", i, c.sites[i].peer))
	}
	c.sites[0].data = data
	for i, s := range c.sites {
		c.procs[i] = s.start(t, etcd, fmt.Sprintf("--name=m%d", i), "--initial-cluster="+strings.Join(initial, ","))
		c.clients[i] = child.Dial(t, s.client)
	}
	for i := range c.sites {
		child.Eventually(t, limit, fmt.Sprintf("m%d answers", i), func() error {
			if !c.procs[i].Running() {
				t.Fatalf("m%d ended with code %d:\n%s", i, c.procs[i].Code(), c.procs[i].Output())
			}
			_, _, err := c.clients[i].GetWithin(2*time.Second, "any")
			return err
		})
	}
	return c
}

// status calls Status on a member, which needs no other member and no disk.
func (c *trio) status(i int) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return c.clients[i].Maintenance.Status(ctx, &pb.StatusRequest{})
}

// lead makes the first member the leader and returns its id.
func (c *trio) lead(t *testing.T) (id uint64) {
	t.Helper()
	child.Eventually(t, limit, "m0 leads", func() error {
		first, err := c.status(0)
		if err != nil {
			return err
		}
		id = first.Header.MemberId
		for i := range c.sites {
			st, err := c.status(i)
			if err != nil {
				return err
			}
			if st.Header.MemberId == st.Leader && i != 0 {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				_, err := c.clients[i].Maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: id})
				cancel()
				if err != nil {
					return err
				}
			}
		}
		if first.Leader != id {
			return fmt.Errorf("%x leads", first.Leader)
		}
		return nil
	})
	return id
}

// requestTimeout is what a member allows a request with the default flags; no answer of a stalled member may
// take longer.
const requestTimeout = 7 * time.Second

// A leader whose disk hangs: another member takes over, clients of the stalled one get an answer, and when the
// disk is back all data is present.
func TestStalledDisk(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd) {
		return
	}
	child.Must(t, "ip", "link", "set", "lo", "up")
	mount := newBlockDisk(t, t.TempDir())
	if mount == "" {
		return
	}
	c := startTrio(t, filepath.Join(mount, "data"))
	id := c.lead(t)
	if _, err := c.clients[0].PutWithin(limit, "before", "1"); err != nil {
		t.Fatal(err)
	}
	child.Must(t, "fsfreeze", "--freeze", mount)
	thawed := false
	thaw := func() {
		if !thawed {
			thawed = true
			child.Must(t, "fsfreeze", "--unfreeze", mount)
		}
	}
	t.Cleanup(thaw) // before the processes are killed: a process that waits for the disk cannot be killed

	frozen := time.Now()
	answer := func(what string, call func() error) {
		start := time.Now()
		err := call()
		took := time.Since(start)
		t.Logf("%s on the stalled member took %v: %v", what, took.Round(time.Millisecond), err)
		if took >= requestTimeout {
			t.Errorf("%s on the stalled member took %v", what, took)
		}
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		answer("a write", func() error { _, err := c.clients[0].PutWithin(limit, "during", "0"); return err })
	}()
	child.Eventually(t, limit, "another member leads", func() error {
		st, err := c.status(1)
		if err == nil && (st.Leader == 0 || st.Leader == id) {
			err = fmt.Errorf("%x leads", st.Leader)
		}
		return err
	})
	t.Logf("another member was seen leading %v after the disk had stopped", time.Since(frozen).Round(time.Millisecond))
	<-written
	for i := range 50 {
		if _, err := c.clients[1+i%2].PutWithin(limit, fmt.Sprintf("during/%d", i), "1"); err != nil {
			t.Fatalf("put on a healthy member: %v", err)
		}
	}
	answer("a read", func() error { _, _, err := c.clients[0].GetWithin(limit, "before"); return err })
	if out := c.procs[0].Output(); !strings.Contains(out, "leadership is handed over") {
		t.Errorf("the stalled member does not say what it does:\n%s", c.procs[0].Tail(10))
	}
	thaw()
	child.Eventually(t, limit, "the member has caught up", func() error {
		v, _, err := c.clients[0].GetWithin(2*time.Second, "during/49")
		if err == nil && v != "1" {
			err = fmt.Errorf("during/49 is %q", v)
		}
		return err
	})
}

// When its disk fails, a member exits and names the file and the error; the others go on.
func TestFailedDisk(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd) {
		return
	}
	child.Must(t, "ip", "link", "set", "lo", "up")
	mount := newBlockDisk(t, t.TempDir())
	if mount == "" {
		return
	}
	c := startTrio(t, filepath.Join(mount, "data"))
	c.lead(t)
	if _, err := c.clients[0].PutWithin(limit, "before", "1"); err != nil {
		t.Fatal(err)
	}
	shutDown(t, mount)
	if _, err := c.clients[0].PutWithin(limit, "during", "1"); err == nil {
		t.Error("a leader without a disk has acknowledged a write")
	}
	if code := c.procs[0].Wait(t, limit); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, want := range []string{"member cannot continue", filepath.Join(mount, "data", "member", "wal"), "input/output error"} {
		if !strings.Contains(c.procs[0].Output(), want) {
			t.Errorf("%q is not in the log:\n%s", want, c.procs[0].Tail(10))
		}
	}
	for i := 1; i < 3; i++ {
		child.Eventually(t, limit, fmt.Sprintf("m%d goes on", i), func() error {
			_, err := c.clients[i].PutWithin(10*time.Second, "after", "1")
			return err
		})
	}
}

// shutDown makes all further reads and writes of a file system fail.
func shutDown(t *testing.T, mount string) {
	t.Helper()
	d, err := os.Open(mount)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const shutdown = 0x8004587d // FS_IOC_SHUTDOWN
	noFlush := uint32(2)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.Fd(), shutdown, uintptr(unsafe.Pointer(&noFlush))); errno != 0 {
		t.Fatalf("shut %s down: %v", mount, errno)
	}
}
