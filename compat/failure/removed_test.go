package failure

import (
	"context"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// A removed member learns of its removal, while it runs or at its next start, and exits as etcd's does.
func TestRemovedMemberEnds(t *testing.T) {
	t.Parallel()
	const removed = "the member has been permanently removed from the cluster"
	for name, binary := range binaries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sites, flags := three(t)
			procs, clients := serveAll(t, binary, sites, flags)
			ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
			defer cancel()
			remove := func(i int) {
				t.Helper()
				var id uint64
				for _, m := range memberList(ctx, t, clients[0]).Members {
					if strings.HasSuffix(m.PeerURLs[0], sites[i].peer) {
						id = m.ID
					}
				}
				child.Eventually(t, limit, "the removal", func() error {
					tctx, cancel := context.WithTimeout(ctx, 10*time.Second)
					defer cancel()
					_, err := clients[0].Cluster.MemberRemove(tctx, &pb.MemberRemoveRequest{ID: id})
					if err != nil && strings.Contains(err.Error(), "member not found") {
						err = nil // an earlier call succeeded
					}
					return err
				})
			}
			ends := func(what string, p *child.Process) {
				t.Helper()
				// etcd's exit code depends on what it was doing when it learned of it: 1 if it was just starting to serve.
				if code := p.Wait(t, limit); code != 0 && (binary == etcd || code != 1) {
					t.Errorf("%s: exit code %d, want 0", what, code)
				}
				if !strings.Contains(p.Output(), removed) {
					t.Errorf("%s: the output does not say that %s:\n%s", what, removed, p.Output())
				}
			}
			remove(2)
			ends("removed while it runs", procs[2])
			ends("started again", sites[2].start(t, binary, flags[2]...))

			child.Eventually(t, limit, "the two that are left go on", func() error {
				_, err := clients[0].PutWithin(5*time.Second, "k", "v")
				return err
			})
		})
	}
}
