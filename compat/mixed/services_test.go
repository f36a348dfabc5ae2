package mixed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/history"
)

// leading runs f with each member of a cluster leading in turn.
func (g *group) leading(t *testing.T, f func(t *testing.T, lead *member)) {
	for _, m := range slices.Clone(g.members) {
		t.Run(m.kind.name+" leads", func(t *testing.T) {
			g.makeLead(m)
			f(t, m)
		})
	}
}

// must runs a call at a member and retries it if a change of leader made it fail, so the call must be safe to
// repeat.
func must[R any](t *testing.T, m *member, what string, f func(ctx context.Context, c *child.Client) (R, error)) R {
	t.Helper()
	var r R
	child.Eventually(t, limit, fmt.Sprintf("%s at %s", what, m), func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		r, err = f(ctx, m.client)
		return err
	})
	return r
}

// refuses checks that a member refuses a call, once nothing transient keeps it from being answered.
func refuses(t *testing.T, m *member, what, want string, f func(ctx context.Context, c *child.Client) error) {
	t.Helper()
	child.Eventually(t, limit, fmt.Sprintf("%s at %s is refused with %q", what, m, want), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := f(ctx, m.client)
		if err == nil {
			t.Fatalf("%s at %s is done, want %q", what, m, want)
		}
		if !strings.Contains(err.Error(), want) {
			return err
		}
		return nil
	})
}

func put(t *testing.T, m *member, key, value string, lease int64) *pb.PutResponse {
	t.Helper()
	return must(t, m, "put "+key, func(ctx context.Context, c *child.Client) (*pb.PutResponse, error) {
		return c.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: lease})
	})
}

func count(t *testing.T, m *member, key string) int64 {
	t.Helper()
	return must(t, m, "count "+key, func(ctx context.Context, c *child.Client) (*pb.RangeResponse, error) {
		return c.Range(ctx, &pb.RangeRequest{Key: []byte(key), CountOnly: true})
	}).Count
}

// The services of clusters of all kinds that can coexist, with each kind leading in turn.
func TestServices(t *testing.T) {
	t.Parallel()
	for name, kinds := range map[string][]*kind{"37": {etcd37, ours, etcd36}, "35": {etcd35, ours, etcd36}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "35" {
				long(t)
			}
			g := found(t, []string{"--quota-backend-bytes=268435456"}, kinds...)
			g.version(g.oldest().cluster)
			t.Run("leases", func(t *testing.T) { g.leading(t, g.leases) })
			t.Run("alarms", g.alarms)
			t.Run("transactions", func(t *testing.T) { g.leading(t, g.transactions) })
			t.Run("watches", g.watches)
			t.Run("defragment", g.defragment)
			t.Run("peer URLs", g.move)
			t.Run("membership", g.membership)
			g.equal()
		})
	}
}

// leases are granted, kept alive, read and revoked at every member, whichever leads; those that no client keeps
// alive expire.
func (g *group) leases(t *testing.T, lead *member) {
	grant := func(m *member, ttl int64) int64 {
		return must(t, m, "grant", func(ctx context.Context, c *child.Client) (*pb.LeaseGrantResponse, error) {
			return c.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl})
		}).ID
	}
	key := func(what string, m *member) string { return fmt.Sprintf("lease/%s/%s/%s", lead, what, m) }
	short, kept := map[*member]int64{}, map[*member]int64{}
	for _, m := range g.members {
		short[m], kept[m] = grant(m, 2), grant(m, 600)
		put(t, m, key("kept", m), "v", kept[m])
	}
	for i, m := range g.members {
		// At a member other than the one that granted it.
		o := g.members[(i+1)%len(g.members)]
		ttl := must(t, o, "keep alive", func(ctx context.Context, c *child.Client) (int64, error) {
			s, err := c.Lease.LeaseKeepAlive(ctx)
			if err != nil {
				return 0, err
			}
			if err := s.Send(&pb.LeaseKeepAliveRequest{ID: kept[m]}); err != nil {
				return 0, err
			}
			r, err := s.Recv()
			return r.GetTTL(), err
		})
		if ttl != 600 {
			t.Errorf("lease of %s kept alive at %s: TTL %d, want 600", m, o, ttl)
		}
		r := must(t, o, "time to live", func(ctx context.Context, c *child.Client) (*pb.LeaseTimeToLiveResponse, error) {
			return c.Lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: kept[m], Keys: true})
		})
		if r.GrantedTTL != 600 || r.TTL <= 0 || r.TTL > 600 || len(r.Keys) != 1 {
			t.Errorf("lease of %s at %s: %v", m, o, r)
		}
		for _, x := range g.members {
			child.Eventually(t, limit, fmt.Sprintf("%s lists the lease of %s", x, m), func() error {
				l := must(t, x, "list leases", func(ctx context.Context, c *child.Client) (*pb.LeaseLeasesResponse, error) {
					return c.Lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
				})
				if !slices.ContainsFunc(l.Leases, func(s *pb.LeaseStatus) bool { return s.ID == kept[m] }) {
					return fmt.Errorf("%d leases without it", len(l.Leases))
				}
				return nil
			})
		}
		must(t, o, "revoke", func(ctx context.Context, c *child.Client) (*pb.LeaseRevokeResponse, error) {
			r, err := c.Lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: kept[m]})
			if err != nil && strings.Contains(err.Error(), "lease not found") {
				err = nil // an earlier call whose answer was lost
			}
			return r, err
		})
		if n := count(t, m, key("kept", m)); n != 0 {
			t.Errorf("%s still has the key of the revoked lease", m)
		}
	}
	for m, id := range short {
		child.Eventually(t, limit, fmt.Sprintf("the lease of %s ends", m), func() error {
			r := must(t, m, "time to live", func(ctx context.Context, c *child.Client) (*pb.LeaseTimeToLiveResponse, error) {
				return c.Lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id})
			})
			if r.TTL != -1 {
				return fmt.Errorf("TTL %d", r.TTL)
			}
			return nil
		})
	}
}

// alarms that one kind raises block writes at every member, until any member clears them.
func (g *group) alarms(t *testing.T) {
	for i, of := range g.members {
		raiser, clearer := g.members[(i+1)%len(g.members)], g.members[(i+2)%len(g.members)]
		alarm := func(m *member, action pb.AlarmRequest_AlarmAction) *pb.AlarmResponse {
			return must(t, m, "alarm", func(ctx context.Context, c *child.Client) (*pb.AlarmResponse, error) {
				return c.Maintenance.Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: of.id, Alarm: pb.AlarmType_NOSPACE})
			})
		}
		alarm(raiser, pb.AlarmRequest_ACTIVATE)
		for _, m := range g.members {
			// Linearizable reads bring the member up to the alarm.
			count(t, m, "any")
			refuses(t, m, "a put with the alarm of "+of.name, "database space exceeded", func(ctx context.Context, c *child.Client) error {
				_, err := c.Put(ctx, &pb.PutRequest{Key: []byte("full"), Value: []byte("v")})
				return err
			})
			if r := alarm(m, pb.AlarmRequest_GET); len(r.Alarms) != 1 || r.Alarms[0].MemberID != of.id {
				t.Errorf("%s tells the alarms %v, want one of %s", m, r.Alarms, of)
			}
			must(t, m, "delete", func(ctx context.Context, c *child.Client) (*pb.DeleteRangeResponse, error) {
				return c.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("full")})
			})
		}
		alarm(clearer, pb.AlarmRequest_DEACTIVATE)
		for _, m := range g.members {
			count(t, m, "any")
			put(t, m, "full", "v", 0)
		}
	}
}

// transactions that write, and also read something unreadable, change nothing on any member if they are sent to
// ours. Members of 3.5 and 3.6 to which they are sent diverge from the others permanently, so they get none.
func (g *group) transactions(t *testing.T, lead *member) {
	for _, m := range g.members {
		if m.kind == etcd35 || m.kind == etcd36 || m.kind == etcd37 && g.oldest() != etcd37 {
			continue
		}
		rev := put(t, m, "before", "v", 0).Header.Revision
		must(t, m, "compact", func(ctx context.Context, c *child.Client) (*pb.CompactionResponse, error) {
			r, err := c.Compact(ctx, &pb.CompactionRequest{Revision: rev})
			if err != nil && strings.Contains(err.Error(), "has been compacted") {
				err = nil // an earlier call whose answer was lost
			}
			return r, err
		})
		for at, want := range map[int64]string{rev - 1: "has been compacted", rev + 1000: "is a future revision"} {
			refuses(t, m, fmt.Sprintf("a read at revision %d", at), want, func(ctx context.Context, c *child.Client) error {
				_, err := c.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
					{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("half"), Value: []byte("v")}}},
					{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("before"), Revision: at}}},
				}})
				return err
			})
		}
	}
	for _, m := range g.members {
		if n := count(t, m, "half"); n != 0 {
			t.Errorf("%s has half of a transaction", m)
		}
	}
	g.equal()
}

// watches at every member see the same events, from old and new revisions on, around a compaction requested at
// another member.
func (g *group) watches(t *testing.T) {
	var watchers []*history.Watcher
	from := put(t, g.members[0], "watched", "0", 0).Header.Revision
	watch := func(m *member) {
		watchers = append(watchers, history.WatchFrom(t, from, func() *child.Client { return m.client }))
	}
	for _, m := range g.members {
		watch(m)
	}
	for i := range 90 {
		put(t, g.members[i%len(g.members)], fmt.Sprintf("watched/%d", i%7), fmt.Sprint(i), 0)
	}
	for _, m := range g.members {
		watch(m)
	}
	rev := history.Rev(t, limit, g.members[0].client)
	for i, w := range watchers {
		w.Await(t, limit, rev)
		events, err := w.Stop()
		if err != nil || len(events) != 90 {
			t.Errorf("watcher %d at %s: %d events, %v, want 90", i, g.members[i%len(g.members)], len(events), err)
		}
	}
	for i, m := range g.members {
		at := rev - int64(20-5*i)
		must(t, m, "compact", func(ctx context.Context, c *child.Client) (*pb.CompactionResponse, error) {
			r, err := c.Compact(ctx, &pb.CompactionRequest{Revision: at, Physical: true})
			if err != nil && strings.Contains(err.Error(), "has been compacted") {
				err = nil // an earlier call whose answer was lost
			}
			return r, err
		})
		for _, o := range g.members {
			count(t, o, "any")
			refuses(t, o, fmt.Sprintf("a read at revision %d, compacted at %d by %s,", at-1, at, m), "has been compacted", func(ctx context.Context, c *child.Client) error {
				_, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("watched"), Revision: at - 1})
				return err
			})
		}
		history.EqualHashes(t, limit, g.clients(), rev)
	}
}

// defragment runs Defragment on each member while that member and the others are written to.
func (g *group) defragment(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var written [8]atomic.Int64
	for i, m := range g.members {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if _, err := m.client.PutWithin(limit, fmt.Sprintf("defrag/%d", i), strings.Repeat("x", n%4096)); err != nil {
					t.Errorf("put at %s: %v", m, err)
					return
				}
				written[i].Add(1)
			}
		})
	}
	for i, m := range g.members {
		before := written[i].Load()
		must(t, m, "defragment", func(ctx context.Context, c *child.Client) (*pb.DefragmentResponse, error) {
			return c.Maintenance.Defragment(ctx, &pb.DefragmentRequest{})
		})
		child.Eventually(t, limit, m.name+" takes writes after it", func() error {
			if written[i].Load() < before+20 {
				return errors.New("not yet")
			}
			return nil
		})
	}
	stop()
	wg.Wait()
	g.equal()
}

// move gives each member a new peer URL, requested at another member, and closes the old one.
func (g *group) move(t *testing.T) {
	for i, m := range g.members {
		was, asked := m.gate, g.members[(i+1)%len(g.members)]
		m.gate = g.net.gate(g.t)
		m.gate.lead(m.proc.Pid(), m.cfg.PeerAddr)
		was.lead(0, "") // it leads nowhere, and the new one knows the peers that dial from it
		must(t, asked, "update", func(ctx context.Context, c *child.Client) (*pb.MemberUpdateResponse, error) {
			return c.Cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: m.id, PeerURLs: []string{m.gate.URL()}})
		})
		was.drop()
		for _, o := range g.members {
			child.Eventually(t, limit, fmt.Sprintf("%s knows the new address of %s", o, m), func() error {
				r := must(t, o, "list members", func(ctx context.Context, c *child.Client) (*pb.MemberListResponse, error) {
					return c.Cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
				})
				for _, x := range r.Members {
					if x.ID == m.id && slices.Equal(x.PeerURLs, []string{m.gate.URL()}) {
						return nil
					}
				}
				return fmt.Errorf("%v", r.Members)
			})
		}
		// The others dial it there: it leads, and hears from them.
		g.makeLead(m)
		put(t, asked, "moved/"+m.name, "v", 0)
		g.equal()
	}
}

// membership returns the same answers at every member to requests that are impossible.
func (g *group) membership(t *testing.T) {
	url := g.members[0].gate.URL()
	for _, c := range []struct {
		what, want string
		f          func(ctx context.Context, c *child.Client) error
	}{
		{"add a member with a known address", "Peer URLs already exists", func(ctx context.Context, c *child.Client) error {
			_, err := c.Cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{url}, IsLearner: true})
			return err
		}},
		{"remove nobody", "member not found", func(ctx context.Context, c *child.Client) error {
			_, err := c.Cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 4711})
			return err
		}},
		{"promote a voter", "can only promote a learner member", func(ctx context.Context, c *child.Client) error {
			_, err := c.Cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: g.members[0].id})
			return err
		}},
		{"promote nobody", "member not found", func(ctx context.Context, c *child.Client) error {
			_, err := c.Cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 4711})
			return err
		}},
	} {
		for _, m := range g.members {
			// Until all have been connected for a while, every change is refused as unsafe.
			refuses(t, m, c.what, c.want, c.f)
		}
	}
}
