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

// A member that comes back with less of its log than it has acknowledged must not vote, whether its directory
// was emptied and it is started as if it joined, or an old copy was restored. It exits with the reason and the
// remedy; the others go on; and the remedy, followed as printed, brings it back with everything. etcd panics
// there; the difference is intended.
func TestLostLog(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"emptied", "old copy"} {
		t.Run(lost, func(t *testing.T) {
			t.Parallel()
			sites, flags := three(t)
			procs, clients := serveAll(t, etcd, sites, flags)
			put := func(i int, key string) {
				t.Helper()
				child.Eventually(t, limit, "a write of "+key, func() error { _, err := clients[i].PutWithin(5*time.Second, key, "v"); return err })
			}
			put(0, "before")
			const gone = 2
			child.Eventually(t, limit, "the member has the first write", func() error { return has(clients[gone], "before") })
			copied := filepath.Join(t.TempDir(), "copy")
			if lost == "old copy" {
				// A copy of a running member would mix several moments.
				procs[gone].Kill()
				child.Must(t, "cp", "-a", sites[gone].data, copied)
				procs[gone] = sites[gone].start(t, etcd, flags[gone]...)
				follow(t, clients[gone], clients[0])
			}
			for i := range 20 {
				put(i%2, fmt.Sprint("after", i))
			}
			child.Eventually(t, limit, "the member has the last write", func() error { return has(clients[gone], "after19") })
			procs[gone].Kill()
			if err := os.RemoveAll(sites[gone].data); err != nil {
				t.Fatal(err)
			}
			again, why := flags[gone], "part of its data directory is lost, or it is an old copy"
			if lost == "emptied" {
				again = append(again[:len(again):len(again)], "--initial-cluster-state=existing")
				why = "has already been bootstrapped: there is no data of it in"
			} else {
				child.Must(t, "cp", "-a", copied, sites[gone].data)
			}

			// It exits, with the reason in one line.
			id := memberAt(t, clients[0], sites[gone].peer)
			way := fmt.Sprintf("etcdctl member remove %x", id)
			for start := range 2 { // and again, if a service manager restarts it
				p := sites[gone].start(t, etcd, again...)
				if code := p.Wait(t, limit); code != 1 {
					t.Errorf("start %d: exit code %d, want 1", start, code)
				}
				said := child.Reasons(p.Output())
				if last := said[max(len(said)-1, 0):]; len(last) == 0 || !strings.Contains(last[0], why) || !strings.Contains(last[0], way) {
					t.Errorf("start %d: it says\n%s\nwant %q and %q in the last line", start, strings.Join(said, "\n"), why, way)
				}
				if strings.Contains(p.Output(), "panic:") {
					t.Errorf("start %d: it panics", start)
				}
				// The others go on.
				put(0, fmt.Sprint("without", start))
				put(1, fmt.Sprint("without too", start))
			}

			// The remedy.
			ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
			defer cancel()
			child.Eventually(t, limit, "the removal", func() error {
				_, err := clients[0].Cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
				return err
			})
			if err := os.RemoveAll(sites[gone].data); err != nil {
				t.Fatal(err)
			}
			child.Eventually(t, limit, "the addition", func() error {
				_, err := clients[0].Cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://" + sites[gone].peer}})
				return err
			})
			p := sites[gone].start(t, etcd, append(flags[gone][:len(flags[gone]):len(flags[gone])], "--initial-cluster-state=existing")...)
			for _, key := range []string{"before", "after0", "after19", "without1", "without too1"} {
				child.Eventually(t, limit, "it has "+key, func() error {
					if !p.Running() {
						t.Fatalf("it ended with code %d:\n%s", p.Code(), p.Tail(5))
					}
					return has(clients[gone], key)
				})
			}
			if now := memberAt(t, clients[0], sites[gone].peer); now == id {
				t.Errorf("it has its old id %x", id)
			}
			// It counts again: with one of the others down, the two have a quorum.
			procs[1].Kill()
			put(0, "with it again")
			put(gone, "through it")
		})
	}
}

// has reports whether this member itself has a key.
func has(c *child.Client, key string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte(key), Serializable: true})
	if err == nil && len(r.Kvs) != 1 {
		err = fmt.Errorf("it has not got %s yet", key)
	}
	return err
}

// memberAt is the id of the member with a peer address.
func memberAt(t *testing.T, c *child.Client, peer string) (id uint64) {
	t.Helper()
	child.Eventually(t, limit, "the member list", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		r, err := c.Cluster.MemberList(ctx, &pb.MemberListRequest{})
		if err != nil {
			return err
		}
		for _, m := range r.Members {
			if strings.HasSuffix(m.PeerURLs[0], peer) {
				id = m.ID
				return nil
			}
		}
		return fmt.Errorf("no member at %s", peer)
	})
	return id
}

// follow makes a member a follower, so that a leader among the others knows what it has acknowledged.
func follow(t *testing.T, c, other *child.Client) {
	t.Helper()
	child.Eventually(t, limit, "another member leads", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		st, err := c.Maintenance.Status(ctx, &pb.StatusRequest{})
		if err != nil {
			return err
		}
		if st.Leader != 0 && st.Leader != st.Header.MemberId {
			return nil
		}
		to, err := other.Maintenance.Status(ctx, &pb.StatusRequest{})
		if err == nil {
			_, err = c.Maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to.Header.MemberId})
		}
		if err == nil {
			err = fmt.Errorf("leadership has just moved")
		}
		return err
	})
}
