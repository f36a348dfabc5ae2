package failure

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// Of three members one remains after kill -9. With --force-new-cluster it serves the existing data, as the same
// member of the same cluster, and others are added. The same holds for etcd, and for a member of etcd whose
// directory Quorate continues with.
func TestForceNewCluster(t *testing.T) {
	t.Parallel()
	type run struct{ ran, forced string }
	runs := map[string]run{"ours": {etcd, etcd}}
	if real != "" {
		runs["etcd"], runs["etcd, then ours"] = run{real, real}, run{real, etcd}
	}
	if real35 != "" {
		runs["etcd 3.5, then ours"] = run{real35, etcd}
	}
	for name, x := range runs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			binary := x.forced
			sites, flags := three(t)
			procs, clients := serveAll(t, x.ran, sites, flags)
			ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
			defer cancel()
			const keys = 50
			for i := range keys {
				child.Eventually(t, limit, "a put", func() error {
					_, err := clients[i%3].PutWithin(5*time.Second, keyOf(i), valueOf(i))
					return err
				})
			}
			// The last writes are concurrent and go to the member that will remain: everything it acknowledged must be
			// present.
			var acked sync.Map
			var wg sync.WaitGroup
			for i := range 60 {
				wg.Go(func() {
					if _, err := clients[0].PutWithin(5*time.Second, keyOf(keys+i), valueOf(keys+i)); err == nil {
						acked.Store(keys+i, true)
					}
				})
			}
			wg.Wait()
			before := memberList(ctx, t, clients[0])
			for _, p := range procs {
				p.Kill()
			}
			s := sites[0]
			p := s.start(t, binary, append(flags[0], "--force-new-cluster")...)
			c := child.Dial(t, s.client)
			child.Eventually(t, limit, "the last member serves", func() error {
				if !p.Running() {
					t.Fatalf("it ended with code %d", p.Code())
				}
				_, err := c.PutWithin(2*time.Second, "after", "x")
				return err
			})
			for i := range keys {
				if got, _, err := c.GetWithin(limit, keyOf(i)); err != nil || got != valueOf(i) {
					t.Fatalf("%s is %q, %v", keyOf(i), got, err)
				}
			}
			if binary == etcd { // etcd forgets entries that it did not know to be committed
				acked.Range(func(i, _ any) bool {
					if got, _, err := c.GetWithin(limit, keyOf(i.(int))); err != nil || got != valueOf(i.(int)) {
						t.Errorf("%s was acknowledged and is %q, %v", keyOf(i.(int)), got, err)
					}
					return true
				})
			}
			after := memberList(ctx, t, c)
			if len(after.Members) != 1 || after.Header.ClusterId != before.Header.ClusterId || after.Header.MemberId != before.Header.MemberId {
				t.Fatalf("members %v, before %v", after, before)
			}
			if !strings.Contains(p.Output(), `"msg":"forcing restart member"`) {
				t.Error("no line about it")
			}

			// A new member in place of a lost one.
			join := newSite(t)
			child.Eventually(t, limit, "a member is added", func() error {
				_, err := c.Cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://" + join.peer}})
				return err
			})
			join.start(t, binary, "--name=fresh", "--initial-cluster-state=existing",
				fmt.Sprintf("--initial-cluster=m0=http://%s,fresh=http://%s", s.peer, join.peer))
			fresh := child.Dial(t, join.client)
			child.Eventually(t, limit, "the new member has the data", func() error {
				got, _, err := fresh.GetWithin(2*time.Second, keyOf(keys-1))
				if err == nil && got != valueOf(keys-1) {
					err = fmt.Errorf("got %q", got)
				}
				return err
			})
		})
	}
}

func memberList(ctx context.Context, t *testing.T, c *child.Client) *pb.MemberListResponse {
	t.Helper()
	r, err := c.Cluster.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
