package failure

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// says waits until a running process has logged text.
func says(t *testing.T, p *child.Process, text string) {
	t.Helper()
	child.Eventually(t, limit, fmt.Sprintf("a line %q", text), func() error {
		if strings.Contains(p.Output(), text) {
			return nil
		}
		if !p.Running() {
			t.Fatalf("the process ended with code %d and did not say %q", p.Code(), text)
		}
		return fmt.Errorf("not said yet")
	})
}

// A member of another cluster at the URL of a peer is recognised by its cluster id: both sides report it, and
// the working cluster goes on. Each side is once the server under test and once etcd.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	for host, hosting := range binaries() {
		for guest, joining := range binaries() {
			t.Run(host+" meets "+guest, func(t *testing.T) {
				t.Parallel()
				a, b := newSite(t), newSite(t)
				running := a.start(t, hosting)
				c := child.Dial(t, a.client)
				child.Eventually(t, limit, "the cluster works", func() error { _, err := c.PutWithin(2*time.Second, "k", "v"); return err })
				// It takes the other for a founding member of its own cluster.
				stray := b.start(t, joining, "--name=m1", "--initial-cluster-token=other",
					fmt.Sprintf("--initial-cluster=m0=http://%s,m1=http://%s", a.peer, b.peer))
				says(t, stray, "request sent was ignored by remote peer due to cluster ID mismatch")
				says(t, running, "request cluster ID mismatch")
				if _, err := c.PutWithin(limit, "k", "v2"); err != nil {
					t.Errorf("put on the cluster that works: %v", err)
				}
			})
		}
	}
}

// Two members that have swapped addresses are recognised by their ids.
func TestSwappedAddresses(t *testing.T) {
	t.Parallel()
	for name, binary := range binaries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sites, flags := three(t)
			procs, clients := serveAll(t, binary, sites, flags)
			for _, i := range []int{1, 2} {
				procs[i].Kill()
			}
			for _, i := range []int{1, 2} {
				other := sites[3-i]
				procs[i] = sites[i].start(t, binary, append(flags[i], "--listen-peer-urls=http://"+other.peer)...)
			}
			says(t, procs[1], "ignored streaming request; ID mismatch")
			says(t, procs[2], "ignored streaming request; ID mismatch")
			for _, i := range []int{1, 2} {
				procs[i].Kill()
				sites[i].start(t, binary, flags[i]...)
			}
			child.Eventually(t, limit, "the cluster works again", func() error { _, err := clients[0].PutWithin(2*time.Second, "k", "v"); return err })
		})
	}
}

// All members must allow the same number of learners, because each one decides for itself.
func TestFewerLearnersAllowed(t *testing.T) {
	t.Parallel()
	for name, binary := range binaries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			p := s.start(t, binary, "--max-learners=2")
			c := child.Dial(t, s.client)
			child.Eventually(t, limit, "the member answers", func() error { _, err := c.PutWithin(2*time.Second, "k", "v"); return err })
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			initial := "--initial-cluster=m0=http://" + s.peer
			var joining *site
			for i := range 2 {
				joining = newSite(t)
				initial += fmt.Sprintf(",l%d=http://%s", i, joining.peer)
				child.Eventually(t, limit, "a learner is added", func() error {
					_, err := c.Cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://" + joining.peer}, IsLearner: true})
					return err
				})
			}
			const text = "membership: too many learner members in cluster"
			joining.refused(t, binary, []string{"--name=l1", "--initial-cluster-state=existing", initial}, text)
			p.Signal(syscall.SIGTERM) // not killed: what only the log holds is not read
			p.Wait(t, limit)
			p = s.start(t, binary) // it has to open its store to know
			if code := p.Wait(t, limit); code != 1 || !strings.Contains(strings.Join(child.Reasons(p.Output()), "\n"), text) {
				t.Errorf("exit code %d, want 1, output:\n%s", code, p.Output())
			}
		})
	}
}
