package failure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	"quorate/compat/child"
)

const noSpace = "etcdserver: mvcc: database space exceeded"

// disk is a small file system with a member's data on it, and the writes that the member has acknowledged.
type disk struct {
	*site
	mount string
	mib   int      // size of the file system
	flags []string // of the member
	acked map[string]string
	next  int
	value []byte
}

func newDisk(t *testing.T, mib int) *disk {
	t.Helper()
	child.Must(t, "ip", "link", "set", "lo", "up")
	d := &disk{site: newSite(t), mib: mib, acked: map[string]string{}, value: make([]byte, 32<<10)}
	d.mount = filepath.Join(d.dir, "disk")
	if err := os.Mkdir(d.mount, 0o700); err != nil {
		t.Fatal(err)
	}
	child.Must(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "small", d.mount)
	t.Cleanup(func() { child.Must(t, "umount", "--lazy", d.mount) })
	return d
}

// put writes a fresh key, with a value that does not compress.
func (d *disk) put(c *child.Client) error {
	d.next++
	r := rand.NewPCG(uint64(d.next), 3)
	for i := 0; i < len(d.value); i += 8 {
		v := r.Uint64()
		for j := range 8 {
			d.value[i+j] = byte(v >> (8 * j))
		}
	}
	key := fmt.Sprintf("fill-%06d", d.next)
	_, err := c.PutWithin(20*time.Second, key, string(d.value))
	if err == nil {
		d.acked[key] = string(d.value[:64])
	}
	return err
}

// putUntilFull writes until the member reports that there is no space.
func (d *disk) putUntilFull(t *testing.T, c *child.Client) {
	t.Helper()
	before := len(d.acked)
	deadline := time.Now().Add(limit)
	for {
		err := d.put(c)
		if err != nil && status.Convert(err).Message() == noSpace {
			break
		}
		// The write that hits the full disk cannot be taken back and may time out.
		if err != nil && !strings.Contains(err.Error(), "timed out") && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("put: %v, want %s", err, noSpace)
		}
		if time.Now().After(deadline) {
			t.Fatalf("puts are not refused; %d are acknowledged, the last answer is %v", len(d.acked), err)
		}
	}
	t.Logf("refused after %d acknowledged puts of 32 KiB", len(d.acked)-before)
}

// verify checks that all acknowledged keys are there with their values.
func (d *disk) verify(t *testing.T, c *child.Client) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(d.acked)) {
		v, found, err := c.GetWithin(limit, key)
		if err != nil {
			t.Fatalf("get %s: %v", key, err)
		}
		if !found || v[:64] != d.acked[key] {
			t.Fatalf("acknowledged key %s: found %v, or another value", key, found)
		}
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd) {
		return
	}
	d := newDisk(t, 170)
	d.data = filepath.Join(d.mount, "data")
	p, c := d.serve(t)
	d.putUntilFull(t, c)

	// Full: writes that need space are refused, everything else works.
	start := time.Now()
	d.verify(t, c)
	t.Logf("%d reads on the full disk took %s", len(d.acked), time.Since(start).Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if _, err := c.Maintenance.Status(ctx, &pb.StatusRequest{}); err != nil {
		t.Errorf("status: %v", err)
	}
	for page, want := range map[string]struct {
		code int
		text string
	}{"readyz": {503, "[-]disk_space failed: a disk is full: all writes are refused until it has room"}, "livez": {200, "ok"}} {
		resp, err := http.Get("http://" + d.client + "/" + page)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want.code || !strings.Contains(string(body), want.text) {
			t.Errorf("/%s on the full disk: %s %s %v", page, resp.Status, body, err)
		}
	}
	gone := "fill-000001"
	if r, err := c.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(gone)}); err != nil || r.Deleted != 1 {
		t.Errorf("delete: %v, %v", r, err)
	} else if _, err := c.Compact(ctx, &pb.CompactionRequest{Revision: r.Header.Revision}); err != nil {
		t.Errorf("compact: %v", err)
	}
	delete(d.acked, gone)
	d.awaitShown(t, true)

	// Space again, without a restart.
	d.free(t)
	child.Eventually(t, limit, "writes succeed once there is room", func() error { return d.put(c) })
	d.awaitShown(t, false)
	d.verify(t, c)

	// Full again, and killed. A start on the full disk serves, or reports what it waits for and can be interrupted;
	// with space it comes back with everything.
	d.putUntilFull(t, c)
	p.Kill()
	d.endsBySignal(t, d.startFull(t))
	p = d.startFull(t)
	d.free(t)
	c = child.Dial(t, d.client)
	child.Eventually(t, limit, "the member that was started on the full disk serves", func() error { return d.put(c) })
	d.verify(t, c)

	// Full once more, and asked to stop.
	d.putUntilFull(t, c)
	d.endsBySignal(t, p)
	d.free(t)
	_, c = d.serve(t)
	d.verify(t, c)
}

// awaitShown waits until monitoring shows what the member reports to clients: that the disk with the given name
// is full, or that none is.
func (d *disk) awaitShown(t *testing.T, full bool, of ...string) {
	t.Helper()
	child.Eventually(t, limit, fmt.Sprintf("quorate_disk_full tells of a full disk: %v", full), func() error {
		resp, err := http.Get("http://" + d.client + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		var shown []string
		for _, m := range regexp.MustCompile(`(?m)^quorate_disk_full\{of="(\w+)"\} 1$`).FindAllSubmatch(body, -1) {
			shown = append(shown, string(m[1]))
		}
		if len(shown) > 0 != full || len(of) > 0 && !slices.Equal(shown, of) {
			return fmt.Errorf("full: %q", shown)
		}
		return nil
	})
}

// endsBySignal asks the process to stop on the full disk.
func (d *disk) endsBySignal(t *testing.T, p *child.Process) {
	t.Helper()
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(t, limit); code != 128+int(syscall.SIGTERM) {
		t.Errorf("exit code %d after SIGTERM on the full disk, want %d", code, 128+int(syscall.SIGTERM))
	}
}

// A log without space refuses writes, while the store has plenty.
func TestFullLogDisk(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd) {
		return
	}
	d := newDisk(t, 70) // one segment and no spare one
	d.flags = []string{"--wal-dir=" + filepath.Join(d.mount, "wal")}
	p, c := d.serve(t, d.flags...)
	d.putUntilFull(t, c)
	d.verify(t, c)
	d.awaitShown(t, true, "log")
	p.Kill()
	p = d.startFull(t)
	d.free(t)
	child.Eventually(t, limit, "writes succeed once there is room", func() error { return d.put(c) })
	d.awaitShown(t, false)
	d.verify(t, c)
	d.free(t)
	d.endsBySignal(t, p)
	_, c = d.serve(t, d.flags...)
	d.verify(t, c)
}

// The same while the log is truncated continuously: truncation needs space itself, and the lack of it must not
// make the member exit.
func TestTruncationOnFullLogDisk(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd) {
		return
	}
	d := newDisk(t, 66) // one segment and no spare one
	d.flags = []string{"--wal-dir=" + filepath.Join(d.mount, "wal"), "--snapshot-count=50", "--snapshot-catchup-entries=10"}
	p, c := d.serve(t, d.flags...)
	d.putUntilFull(t, c)
	d.value = d.value[:64] // smaller writes still fit, and are truncated again
	d.putUntilFull(t, c)
	d.verify(t, c)
	if !p.Running() {
		t.Fatalf("the member ended with code %d:\n%s", p.Code(), p.Tail(5))
	}
	p.Kill()
	p = d.startFull(t)
	d.free(t)
	child.Eventually(t, limit, "writes succeed once there is room", func() error { return d.put(c) })
	d.verify(t, c)
	d.endsBySignal(t, p)
	_, c = d.serve(t, d.flags...)
	d.verify(t, c)
}

// When a store can no longer create files, because its disk fails, is read-only or over a quota, the member
// exits with the reason. Until then it does not retry in a tight loop, and another member leads.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd) {
		return
	}
	child.Must(t, "ip", "link", "set", "lo", "up")
	data := filepath.Join(t.TempDir(), "data")
	c := startTrio(t, data)
	id := c.lead(t)
	store := filepath.Join(data, "member", "store")
	if err := os.Rename(store, filepath.Join(data, "moved")); err != nil {
		t.Fatal(err)
	}
	value := strings.Repeat("x", 1<<20)
	for i := 0; c.procs[0].Running() && i < 200; i++ { // until the store has to write
		_, _ = c.clients[0].PutWithin(10*time.Second, fmt.Sprint("k", i%10), value)
	}
	if code := c.procs[0].Wait(t, limit); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	out := c.procs[0].Output()
	for _, want := range []string{"transferring leadership", store, "no such file or directory"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in the log:\n%s", want, c.procs[0].Tail(10))
		}
	}
	if n := strings.Count(out, "no such file or directory"); n > 50 {
		t.Errorf("the log speaks of it %d times", n)
	}
	child.Eventually(t, limit, "another member leads", func() error {
		st, err := c.status(1)
		if err == nil && (st.Leader == 0 || st.Leader == id) {
			err = fmt.Errorf("%x leads", st.Leader)
		}
		return err
	})
	if !strings.Contains(out, "lost leader") && !strings.Contains(out, "changed leader from") || strings.Contains(out, "leadership transfer failed") {
		t.Errorf("leadership was not handed over:\n%s", c.procs[0].Tail(10))
	}
	for i := 1; i < 3; i++ {
		child.Eventually(t, limit, fmt.Sprintf("m%d goes on", i), func() error {
			_, err := c.clients[i].PutWithin(10*time.Second, "after", "1")
			return err
		})
	}
}

// Files that a member leaves behind when it is killed while it sends a snapshot are removed by the next start.
func TestKilledInSnapshot(t *testing.T) {
	s := newSite(t)
	p, c := s.serve(t)
	for i := range 30 {
		v := make([]byte, 1<<20)
		r := rand.NewPCG(uint64(i), 1)
		for j := range v {
			v[j] = byte(r.Uint64())
		}
		if _, err := c.PutWithin(limit, fmt.Sprint("k", i), string(v)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	st, err := c.Maintenance.Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil { // the rest stays in place
		t.Fatal(err)
	}
	p.Kill()
	_, c = s.serve(t)
	names, err := os.ReadDir(filepath.Join(s.data, "member", "snap"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !n.IsDir() { // what keeps etcd from the directory
			t.Errorf("%s is left", n.Name())
		}
	}
	if _, found, err := c.GetWithin(limit, "k29"); err != nil || !found {
		t.Errorf("k29: %v, %v", found, err)
	}
}

// A member whose disk has become read-only does not start, and reports that.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd) {
		return
	}
	d := newDisk(t, 200)
	d.data = filepath.Join(d.mount, "data")
	d.inhabit(t, false)
	child.Must(t, "mount", "-o", "remount,ro", d.mount)
	d.refuses(t, nil, d.data, "read-only file system")
	child.Must(t, "mount", "-o", "remount,rw", d.mount)
	_, c := d.serve(t)
	complete(t, c)
}

// startFull starts the member on a full disk and waits until it serves or reports that it cannot.
func (d *disk) startFull(t *testing.T) *child.Process {
	t.Helper()
	p := d.start(t, etcd, d.flags...)
	c := child.Dial(t, d.client)
	child.Eventually(t, limit, "the member serves or says why not", func() error {
		if !p.Running() {
			t.Fatalf("the member ended with code %d:\n%s", p.Code(), p.Tail(5))
		}
		if strings.Contains(p.Output(), "no space left on device") && strings.Contains(p.Output(), d.mount) {
			t.Log("a start on the full disk waits for room and says so")
			return nil
		}
		_, _, err := c.GetWithin(time.Second, "any")
		return err
	})
	return p
}

// free makes space for the data that is in memory so far, a segment of the log and some puts.
func (d *disk) free(t *testing.T) {
	t.Helper()
	d.mib += 150
	child.Must(t, "mount", "-o", fmt.Sprintf("remount,size=%dm", d.mib), d.mount)
}
