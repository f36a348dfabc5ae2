package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/history"
)

// storeBytes is the size of the state that is sent. mostMemory is how much memory of its own a member may use
// that sends or receives it: a member that held the whole state in memory would need more. Pages of mapped files
// do not count; the system can reclaim them.
const (
	storeBytes = 320 << 20
	mostMemory = 400 << 20
)

// A member that is far behind is sent the whole state. The sender and the receiver are killed in the middle of
// it; the existing state stays usable, the transfer begins again, and in the end all members hold the same.
func TestTransferIsCut(t *testing.T) {
	t.Setenv("GOGC", "25") // measure what members hold, not what they have not collected yet
	ctx, cancel := context.WithTimeout(context.Background(), 5*limit)
	defer cancel()
	c, err := harness.StartCluster(ctx, t.TempDir(), []string{etcd, etcd, etcd}, "--snapshot-count", "50", "--snapshot-catchup-entries", "5", "--quota-backend-bytes", "-1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	clients := make([]*child.Client, 3)
	for i, m := range c.Members {
		clients[i] = child.Dial(t, m.ClientAddr())
	}
	peaks := watchMemory(t, c.Members)
	behind := (leading(t, clients) + 1) % 3
	put := func(via int, key, value string) {
		t.Helper()
		child.Eventually(t, limit, "put "+key, func() error { _, err := clients[via].PutWithin(20*time.Second, key, value); return err })
	}
	put(behind, "before", "x")
	if err := c.Members[behind].Kill(); err != nil {
		t.Fatal(err)
	}
	fill(t, clients[(behind+1)%3])

	// The receiver is killed while it receives: it restarts with the state it had.
	sender := leading(t, clients, behind)
	third := 3 - behind - sender
	installed := installs(t, c.Members[behind])
	restart(t, c.Members[behind])
	cut := underWay(t, c.Members[behind], installed)
	if err := c.Members[behind].Kill(); err != nil {
		t.Fatal(err)
	}
	put(third, "after", "receiver killed")

	// Then the sender is killed while it sends: another member leads, and sends.
	installed = installs(t, c.Members[behind])
	restart(t, c.Members[behind])
	if cut { // else it has everything already
		cut = underWay(t, c.Members[behind], installed)
	}
	if err := c.Members[sender].Kill(); err != nil {
		t.Fatal(err)
	}
	put(third, "after", "sender killed")
	restart(t, c.Members[sender])
	equal(t, clients)
	for i, want := range []string{"before=x", "after=sender killed"} {
		key, value, _ := strings.Cut(want, "=")
		if v, _, err := clients[behind].GetWithin(limit, key); err != nil || v != value {
			t.Errorf("%d: %s is %q, %v", i, key, v, err)
		}
	}
	for i, peak := range peaks() {
		if peak > mostMemory {
			t.Errorf("member %d took %d MB at its peak; the state is %d MB", i, peak>>20, storeBytes>>20)
		}
		t.Logf("member %d took %d MB at its peak", i, peak>>20)
	}
	if !cut {
		t.Log("a transfer was over before it could be cut: this machine is too fast for its size")
	}
}

// watchMemory samples the memory of all members until the returned function is called, which returns their
// peaks.
func watchMemory(t *testing.T, members []*harness.Member) func() []int64 {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	peaks := make([]int64, len(members))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for i, m := range members {
				if mem, err := m.Memory(); err == nil { // a killed member has none
					peaks[i] = max(peaks[i], mem.Own)
				}
			}
			history.Sleep(ctx, 10*time.Millisecond)
		}
	}()
	return func() []int64 {
		cancel()
		<-done
		return peaks
	}
}

// leading returns the position of the leader, asking all members except those given.
func leading(t *testing.T, clients []*child.Client, without ...int) int {
	t.Helper()
	leader := -1
	child.Eventually(t, limit, "a leader", func() error {
		for i, c := range clients {
			if len(without) > 0 && without[0] == i {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			s, err := c.Maintenance.Status(ctx, &pb.StatusRequest{})
			cancel()
			if err == nil && s.Leader == s.Header.MemberId {
				leader = i
				return nil
			}
		}
		return errors.New("no member leads")
	})
	return leader
}

// fill writes the state, with values that do not compress.
func fill(t *testing.T, c *child.Client) {
	t.Helper()
	const size, each = 32 << 10, 32
	r := rand.New(rand.NewPCG(1, 1))
	for i := range storeBytes / size / each {
		txn := &pb.TxnRequest{}
		for j := range each {
			value := make([]byte, size)
			for k := 0; k+8 <= size; k += 8 {
				u := r.Uint64()
				for b := range 8 {
					value[k+b] = byte(u >> (8 * b))
				}
			}
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "state/%d/%d", i, j), Value: value}}})
		}
		child.Eventually(t, limit, "a part of the state", func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err := c.Txn(ctx, txn)
			return err
		})
	}
}

func restart(t *testing.T, m *harness.Member) {
	t.Helper()
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
}

// underWay waits until a member is receiving the state. It returns false if the member has all of it already,
// which is one more completed installation.
func underWay(t *testing.T, m *harness.Member, installed int) bool {
	t.Helper()
	cut := false
	child.Eventually(t, limit, "a transfer", func() error {
		parts, err := filepath.Glob(filepath.Join(m.DataDir(), "member/snap/*.part"))
		if err != nil {
			return err
		}
		if cut = len(parts) > 0; cut {
			return nil
		}
		if installs(t, m) == installed {
			return errors.New("not yet")
		}
		return nil
	})
	return cut
}

// installs counts the snapshots that a member has begun to install, in all its runs.
func installs(t *testing.T, m *harness.Member) int {
	t.Helper()
	text, err := os.ReadFile(m.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "applying snapshot")
}

// equal waits until all members hold the same at one revision.
func equal(t *testing.T, clients []*child.Client) {
	t.Helper()
	history.EqualHashes(t, limit, clients, history.Rev(t, limit, clients[0]))
}
