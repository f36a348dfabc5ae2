package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// Leases grants, keeps alive and revokes leases at arbitrary members, and records what must follow. All keys
// are below "lease/".
type Leases struct {
	l *Load

	mu    sync.Mutex
	wrong []string
	there []string // keys that no lease may have deleted
	gone  []string // keys of leases that no client keeps alive

	granted, renewed, revoked int
}

const (
	keptTTL   = 60   // seconds; renewed every half second
	longTTL   = 7200 // seconds; longer than any test
	renewPace = 500 * time.Millisecond
	churnPace = 100 * time.Millisecond
)

// StartLeases starts clients of leases, which run until the load is stopped.
func StartLeases(l *Load, seed uint64) *Leases {
	s := &Leases{l: l}
	l.Go(func(ctx context.Context) { s.keep(ctx, rand.New(rand.NewPCG(seed, 100))) })
	l.Go(func(ctx context.Context) { s.churn(ctx, rand.New(rand.NewPCG(seed, 101))) })
	return s
}

func (s *Leases) note(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// call runs a call at some member within a few seconds.
func (s *Leases) call(r *rand.Rand, f func(ctx context.Context, c *child.Client) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return f(ctx, s.l.Member(r.IntN(1<<16)))
}

// grant creates a lease with one key; it returns 0 if the outcome is unknown.
func (s *Leases) grant(r *rand.Rand, ttl int64, key string) (id int64) {
	err := s.call(r, func(ctx context.Context, c *child.Client) error {
		g, err := c.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl})
		id = g.GetID()
		return err
	})
	if err == nil {
		err = s.call(r, func(ctx context.Context, c *child.Client) error {
			_, err := c.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("v"), Lease: id})
			return err
		})
	}
	if err != nil {
		return 0
	}
	s.note(func() { s.granted++ })
	return id
}

// keep keeps one lease alive until the end.
func (s *Leases) keep(ctx context.Context, r *rand.Rand) {
	const key = "lease/kept"
	var id int64
	for id == 0 && ctx.Err() == nil {
		id = s.grant(r, keptTTL, key)
	}
	for ctx.Err() == nil {
		Sleep(ctx, renewPace)
		var ttl int64
		err := s.call(r, func(ctx context.Context, c *child.Client) error {
			st, err := c.Lease.LeaseKeepAlive(ctx)
			if err != nil {
				return err
			}
			if err := st.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
				return err
			}
			a, err := st.Recv()
			ttl = a.GetTTL()
			return err
		})
		if err != nil {
			continue
		}
		if ttl != keptTTL {
			s.note(func() {
				s.wrong = append(s.wrong, fmt.Sprintf("the lease that is kept alive has TTL %d, want %d", ttl, keptTTL))
			})
			return
		}
		s.note(func() { s.renewed++ })
	}
	if id != 0 {
		s.note(func() { s.there = append(s.there, key) })
	}
}

// churn creates leases: some are revoked, some expire, some outlive the test.
func (s *Leases) churn(ctx context.Context, r *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		Sleep(ctx, churnPace)
		key := fmt.Sprintf("lease/%05d", n)
		switch n % 3 {
		case 0:
			if s.grant(r, longTTL, key) != 0 {
				s.note(func() { s.there = append(s.there, key) })
			}
		case 1:
			if s.grant(r, 2, key) != 0 {
				s.note(func() { s.gone = append(s.gone, key) })
			}
		case 2:
			id := s.grant(r, longTTL, key)
			if id == 0 || s.call(r, func(ctx context.Context, c *child.Client) error {
				_, err := c.Lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id})
				return err
			}) != nil {
				continue
			}
			found := int64(0)
			if s.call(r, func(ctx context.Context, c *child.Client) error {
				a, err := c.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
				found = a.GetCount()
				return err
			}) == nil && found != 0 {
				s.note(func() { s.wrong = append(s.wrong, key+" is there after its lease was revoked") })
			}
			s.note(func() { s.revoked++ })
		}
	}
}

// Enough waits until there were enough leases for a conclusion: in a test of a few seconds a call may have spent
// seconds on a member that was down.
func (s *Leases) Enough(t *testing.T, limit time.Duration) {
	t.Helper()
	child.Eventually(t, limit, "leases are granted and renewed", func() (err error) {
		s.note(func() {
			if s.granted < 10 || s.renewed < 5 {
				err = fmt.Errorf("%d granted, one renewed %d times", s.granted, s.renewed)
			}
		})
		return err
	})
}

// Settle checks what must be present and what must be gone, and revokes all leases, so that nothing changes any
// more. The load must be stopped.
func (s *Leases) Settle(t *testing.T, limit time.Duration, c *child.Client) {
	t.Helper()
	for _, w := range s.wrong {
		t.Error(w)
	}
	has := map[string]bool{}
	look := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("lease/"), RangeEnd: []byte("lease0"), KeysOnly: true})
		if err != nil {
			return err
		}
		clear(has)
		for _, kv := range r.Kvs {
			has[string(kv.Key)] = true
		}
		for _, key := range s.gone {
			if has[key] {
				return fmt.Errorf("%s is still there", key)
			}
		}
		return nil
	}
	child.Eventually(t, limit, "leases without keepalives expire", look)
	for _, key := range s.there {
		if !has[key] {
			t.Errorf("%s is gone, and its lease cannot have ended", key)
		}
	}
	child.Eventually(t, limit, "all leases are revoked", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// A linearizable read first, because the list is this member's local state.
		if _, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("lease/")}); err != nil {
			return err
		}
		r, err := c.Lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		if err != nil || len(r.Leases) == 0 {
			return err
		}
		for _, x := range r.Leases {
			if _, err := c.Lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: x.ID}); err != nil {
				return err
			}
		}
		return fmt.Errorf("there were %d", len(r.Leases))
	})
	t.Logf("%d leases granted, %d revoked, one renewed %d times", s.granted, s.revoked, s.renewed)
}
