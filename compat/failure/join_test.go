package failure

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// three are the sites of a cluster's members, with the flags that name the other members.
func three(t *testing.T) (sites [3]*site, flags [3][]string) {
	t.Helper()
	var initial []string
	for i := range sites {
		sites[i] = newSite(t)
		initial = append(initial, fmt.Sprintf("m%d=http://%s", i, sites[i].peer))
	}
	for i := range sites {
		flags[i] = []string{fmt.Sprintf("--name=m%d", i), "--initial-cluster=" + strings.Join(initial, ",")}
	}
	return sites, flags
}

// serveAll starts the members together and returns once each serves.
func serveAll(t *testing.T, binary string, sites [3]*site, flags [3][]string) (procs [3]*child.Process, clients [3]*child.Client) {
	t.Helper()
	for i, s := range sites {
		procs[i], clients[i] = s.start(t, binary, flags[i]...), child.Dial(t, s.client)
	}
	for i, c := range clients {
		child.Eventually(t, limit, fmt.Sprintf("member %d answers", i), func() error {
			_, _, err := c.GetWithin(2*time.Second, "any")
			return err
		})
	}
	return procs, clients
}

// binaries are the servers to compare: the one under test, and real etcd if there is one.
func binaries() map[string]string {
	b := map[string]string{"ours": etcd}
	if real != "" {
		b["etcd"] = real
	}
	return b
}

// refused checks the outcome of a start that must fail, for etcd too if text applies to it.
func (s *site) refused(t *testing.T, binary string, args []string, want ...string) {
	t.Helper()
	if binary == etcd {
		s.refuses(t, args, want...)
		return
	}
	p := s.start(t, binary, args...)
	code := p.Wait(t, limit)
	if said := strings.Join(child.Reasons(p.Output()), "\n"); code != 1 || !strings.Contains(said, want[0]) {
		t.Errorf("etcd 3.7.3: exit code %d, want 1, and %q in:\n%s", code, want[0], said)
	}
}

// A member that has lost its data must not vote again under its old identity.
func TestBootstrappedAlready(t *testing.T) {
	t.Parallel()
	for name, binary := range binaries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sites, flags := three(t)
			procs, _ := serveAll(t, binary, sites, flags)
			procs[2].Kill()
			if err := os.RemoveAll(sites[2].data); err != nil {
				t.Fatal(err)
			}
			sites[2].refused(t, binary, flags[2], "has already been bootstrapped")
		})
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	for name, binary := range binaries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sites, _ := three(t)
			sites[0].start(t, binary)
			c := child.Dial(t, sites[0].client)
			child.Eventually(t, limit, "the first member answers", func() error { _, err := c.PutWithin(2*time.Second, "k", "v"); return err })
			join := sites[1]
			peers := "--initial-cluster=m0=http://" + sites[0].peer + ",m1=http://"
			existing := []string{"--name=m1", "--initial-cluster-state=existing"}
			join.refused(t, binary, append(existing, peers+join.peer), "member count is unequal",
				"the cluster has no member at http://"+join.peer+", which is m1 in --initial-cluster: it has to be added first")

			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			// A young cluster refuses membership changes for a while.
			child.Eventually(t, limit, "a member is added", func() error {
				_, err := c.Cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://" + join.peer}, IsLearner: true})
				return err
			})
			other := join.more[0]
			join.refused(t, binary, append(existing, peers+other, "--initial-advertise-peer-urls=http://"+other), "no match found for existing member",
				"at http://"+join.peer+", which was added and has not been started; the cluster is --initial-cluster=")

			// With the announced settings it joins, and has the data.
			p := join.start(t, binary, append(existing, peers+join.peer)...)
			got := child.Dial(t, join.client)
			child.Eventually(t, limit, "the new member has the data", func() error {
				if !p.Running() {
					t.Fatalf("it ended with code %d", p.Code())
				}
				ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				r, err := got.Range(ctx, &pb.RangeRequest{Key: []byte("k"), Serializable: true})
				if err == nil && len(r.Kvs) != 1 {
					err = fmt.Errorf("%d keys", len(r.Kvs))
				}
				return err
			})
		})
	}
}

// A start that is killed at any moment can be repeated as if it had never happened.
func TestFirstStartKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	// What a first start creates, in order; the test kills at each of these.
	moments := []string{"", "member", "member/wal.tmp", "member/wal", "member/snap", "member/OWNER", "member/store", "member/store/LOCK"}
	for round := range 24 {
		if err := os.RemoveAll(s.data); err != nil {
			t.Fatal(err)
		}
		moment := filepath.Join(s.data, moments[round%len(moments)])
		p := s.start(t, etcd)
		for deadline := time.Now().Add(limit); ; {
			if _, err := os.Stat(moment); err == nil {
				break
			}
			if time.Now().After(deadline) || strings.HasSuffix(moment, ".tmp") && exists(filepath.Join(s.data, "member/store")) {
				break // it existed too briefly to be seen
			}
		}
		p.Kill()
		p, c := s.serve(t)
		if _, err := c.PutWithin(limit, "k", "v"); err != nil {
			t.Fatalf("killed when %s was there: %v", moment, err)
		}
		p.Kill()
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
