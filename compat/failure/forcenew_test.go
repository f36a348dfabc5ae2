package failure

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// Of three members one is left; with --force-new-cluster it serves what was there, as the same
// member of the same cluster, and others are added. The same holds for real etcd.
func TestForceNewCluster(t *testing.T) {
	t.Parallel()
	for name, binary := range binaries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sites, flags := three(t)
			procs, clients := serveAll(t, binary, sites, flags)
			ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
			defer cancel()
			// A member knows that an entry is committed from what comes after it; what it does not know
			// to be committed is dropped. So more is written than is looked for.
			const keys, more = 50, 20
			for i := range keys + more {
				child.Eventually(t, limit, "a put", func() error {
					_, err := clients[i%3].PutWithin(5*time.Second, keyOf(i), valueOf(i))
					return err
				})
			}
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
			after := memberList(ctx, t, c)
			if len(after.Members) != 1 || after.Header.ClusterId != before.Header.ClusterId || after.Header.MemberId != before.Header.MemberId {
				t.Fatalf("members %v, before %v", after, before)
			}
			if !strings.Contains(p.Output(), `"msg":"forcing restart member"`) {
				t.Error("no line about it")
			}

			// A new one in place of one that was lost.
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
