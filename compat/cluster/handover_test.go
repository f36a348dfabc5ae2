package cluster

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// trio is three members with the test's own flags.
type trio struct {
	procs   [3]*child.Process
	client  [3]string // host:port
	clients [3]*child.Client
	config  [3]child.Config
}

// freePort returns a port that is free on all three addresses.
func freePort(t *testing.T) string {
	t.Helper()
	var port string
	child.Eventually(t, limit, "a free port", func() error {
		addrs, err := harness.FreeAddrs(1)
		if err != nil {
			return err
		}
		_, port, _ = strings.Cut(addrs[0], ":")
		for _, ip := range []string{"127.0.0.2:", "127.0.0.3:"} {
			l, err := net.Listen("tcp", ip+port)
			if err != nil {
				return err
			}
			l.Close()
		}
		return nil
	})
	return port
}

// newTrio prepares members on free ports of 127.0.0.1 to 127.0.0.3.
func newTrio(t *testing.T, more ...string) *trio {
	t.Helper()
	clientPort, peerPort := freePort(t), freePort(t)
	tr := &trio{}
	dir := t.TempDir()
	for i := range tr.config {
		ip := fmt.Sprintf("127.0.0.%d", i+1)
		tr.client[i] = ip + ":" + clientPort
		tr.config[i] = child.Config{Program: etcd, Dir: fmt.Sprintf("%s/etcd-%d", dir, i+1), Args: append([]string{
			"--name", fmt.Sprintf("etcd-%d", i+1), "--data-dir", fmt.Sprintf("%s/data-%d", dir, i+1),
			"--initial-advertise-peer-urls", "http://" + ip + ":" + peerPort, "--listen-peer-urls", "http://" + ip + ":" + peerPort,
			"--listen-client-urls", "http://" + tr.client[i], "--advertise-client-urls", "http://" + tr.client[i],
			"--initial-cluster-token", "etcd-cluster", "--initial-cluster",
			fmt.Sprintf("etcd-1=http://127.0.0.1:%[1]s,etcd-2=http://127.0.0.2:%[1]s,etcd-3=http://127.0.0.3:%[1]s", peerPort),
			"--initial-cluster-state", "new"}, more...)}
		tr.clients[i] = child.Dial(t, tr.client[i])
	}
	return tr
}

// start starts the members, all if none is named, and waits until they answer.
func (tr *trio) start(t *testing.T, which ...int) {
	t.Helper()
	if len(which) == 0 {
		which = []int{0, 1, 2}
	}
	for _, i := range which {
		tr.procs[i] = child.Start(t, tr.config[i])
	}
	for _, i := range which {
		child.Eventually(t, limit, fmt.Sprintf("member %d answers", i), func() error {
			if !tr.procs[i].Running() {
				t.Fatalf("it ended with code %d", tr.procs[i].Code())
			}
			_, _, err := tr.clients[i].GetWithin(2*time.Second, "any")
			return err
		})
	}
}

// leader returns the position and the id of the member that leads.
func (tr *trio) leader(t *testing.T) (pos int, id uint64) {
	t.Helper()
	child.Eventually(t, limit, "a leader that all agree on", func() error {
		pos, id = -1, 0
		for i := range tr.procs {
			if !tr.procs[i].Running() {
				continue
			}
			s, err := tr.status(i)
			if err != nil {
				return err
			}
			if id != 0 && s.Leader != id || s.Leader == 0 {
				return fmt.Errorf("leaders %x and %x", id, s.Leader)
			}
			id = s.Leader
			if s.Header.MemberId == id {
				pos = i
			}
		}
		if pos < 0 {
			return fmt.Errorf("leader %x does not say so itself", id)
		}
		return nil
	})
	return pos, id
}

func (tr *trio) status(i int) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return tr.clients[i].Maintenance.Status(ctx, &pb.StatusRequest{})
}

// A leader that is asked to stop hands over first: when it is gone another member leads, no client had to wait
// for an election, and every request that it had accepted was answered.
func TestStoppingLeaderHandsOver(t *testing.T) {
	t.Parallel()
	// With this election timeout, handover and election cannot be confused.
	tr := newTrio(t, "--heartbeat-interval=100", "--election-timeout=3000")
	tr.start(t)
	old, oldID := tr.leader(t)

	// Writers at the leader, and one at each follower.
	type outcome struct {
		acked int
		err   error
	}
	const perLeader = 20
	outcomes := make([]outcome, perLeader+2)
	var wg sync.WaitGroup
	var written atomic.Int64
	done := make(chan struct{})
	write := func(n, member int) {
		o := &outcomes[n]
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, o.err = tr.clients[member].PutWithin(limit, fmt.Sprintf("w-%d-%06d", n, o.acked), "v"); o.err != nil {
				return
			}
			o.acked++
			written.Add(1)
		}
	}
	for n := range perLeader {
		wg.Go(func() { write(n, old) })
	}
	wg.Go(func() { write(perLeader, (old+1)%3) })
	wg.Go(func() { write(perLeader+1, (old+2)%3) })
	child.Eventually(t, limit, "writers are under way", func() error {
		if n := written.Load(); n < 500 {
			return fmt.Errorf("%d writes", n)
		}
		return nil
	})

	asked := time.Now()
	tr.procs[old].Signal(syscall.SIGTERM)
	code := tr.procs[old].Wait(t, limit)
	took := time.Since(asked)
	for _, i := range []int{(old + 1) % 3, (old + 2) % 3} {
		s, err := tr.status(i)
		if err != nil || s.Leader == oldID || s.Leader == 0 {
			t.Errorf("when the leader is gone, member %d follows %x (%v), want another leader than %x", i, s.GetLeader(), err, oldID)
		}
	}
	if want := 128 + int(syscall.SIGTERM); code != want {
		t.Errorf("exit code %d, want %d", code, want)
	}
	before := written.Load()
	child.Eventually(t, limit, "writes go on", func() error {
		if n := written.Load(); n < before+20 {
			return fmt.Errorf("%d writes since", n-before)
		}
		return nil
	})
	close(done)
	wg.Wait()
	for n, o := range outcomes {
		if n < perLeader {
			// At the member that stops, only a call that was never sent may fail.
			if o.err != nil && !child.NeverSent(o.err) {
				t.Errorf("writer %d at the old leader, after %d writes: %v", n, o.acked, o.err)
			}
		} else if o.err != nil {
			t.Errorf("writer at a follower, after %d writes: %v", o.acked, o.err)
		}
	}
	t.Logf("handed over and ended within %v; %d writes acknowledged", took.Round(time.Millisecond), written.Load())

	// All writes are present, also after all members were restarted.
	tr.start(t, old)
	check := func() {
		t.Helper()
		for i := range tr.clients {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			r, err := tr.clients[i].Range(ctx, &pb.RangeRequest{Key: []byte("w-"), RangeEnd: []byte("w."), KeysOnly: true})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			has := map[string]bool{}
			for _, kv := range r.Kvs {
				has[string(kv.Key)] = true
			}
			for n, o := range outcomes {
				for k := range o.acked {
					if key := fmt.Sprintf("w-%d-%06d", n, k); !has[key] {
						t.Fatalf("member %d has lost %s", i, key)
					}
				}
			}
		}
	}
	check()
	for _, p := range tr.procs {
		p.Signal(syscall.SIGTERM)
	}
	for i, p := range tr.procs {
		if code := p.Wait(t, limit); code != 128+int(syscall.SIGTERM) {
			t.Errorf("member %d: exit code %d", i, code)
		}
	}
	tr.start(t)
	check()
}

// A lease outlives its leader; the next leader restarts its TTL from the beginning, and it expires by itself if
// no client keeps it alive.
func TestLeaseSurvivesLeader(t *testing.T) {
	t.Parallel()
	tr := newTrio(t)
	tr.start(t)
	old, _ := tr.leader(t)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	follower := tr.clients[(old+1)%3]
	attach := func(ttl int64, key string) int64 {
		t.Helper()
		g, err := follower.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := follower.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("v"), Lease: g.ID}); err != nil {
			t.Fatal(err)
		}
		return g.ID
	}
	long := attach(600, "long")
	attach(5, "short")
	tr.procs[old].Kill()
	child.Eventually(t, limit, "the short lease ends", func() error {
		if _, found, err := follower.GetWithin(5*time.Second, "short"); err != nil || found {
			return fmt.Errorf("found %v, %v", found, err)
		}
		return nil
	})
	if _, found, err := follower.GetWithin(limit, "long"); err != nil || !found {
		t.Errorf("the key of the long lease: found %v, %v", found, err)
	}
	r, err := follower.Lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: long, Keys: true})
	if err != nil || r.GrantedTTL != 600 || r.TTL <= 0 || r.TTL > 600 || len(r.Keys) != 1 {
		t.Errorf("the long lease is %v, %v", r, err)
	}
	tr.start(t, old)
	if _, err := tr.clients[old].Lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: long}); err != nil {
		t.Fatal(err)
	}
	if _, found, err := tr.clients[old].GetWithin(limit, "long"); err != nil || found {
		t.Errorf("after the revocation: found %v, %v", found, err)
	}
}
