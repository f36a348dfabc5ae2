package hostile

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	"quorate/compat/child"
)

// Far more concurrent requests than a member can serve: some are refused immediately with "too many requests",
// none is lost, and what keeps a cluster alive goes on. Afterwards it serves as before.
func TestOverload(t *testing.T) {
	t.Parallel()
	v := startVictim(t, true, []string{"--election-timeout", "3000", "--heartbeat-interval", "100"})
	before := v.lines(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*limit)
	defer cancel()
	first, err := v.good.Maintenance.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	lease, err := v.good.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var beside sync.WaitGroup
	every := func(pause time.Duration, what string, f func() error) {
		beside.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
				if err := f(); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	alive, err := v.good.Lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var renewed, healthy atomic.Int64
	every(100*time.Millisecond, "renew the lease", func() error {
		if err := alive.Send(&pb.LeaseKeepAliveRequest{ID: lease.ID}); err != nil {
			return err
		}
		r, err := alive.Recv()
		if err == nil && r.TTL != 60 {
			err = fmt.Errorf("time to live %d", r.TTL)
		}
		renewed.Add(1)
		return err
	})
	web := &http.Client{Timeout: limit}
	defer web.CloseIdleConnections()
	every(100*time.Millisecond, "health", func() error {
		r, err := web.Get(v.ClientURL() + "/health")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", r.Status)
		}
		healthy.Add(1)
		return nil
	})
	const crowd, each = 25_000, 2
	conns := make([]*child.Client, 25)
	for i := range conns {
		conns[i] = child.Dial(t, v.ClientAddr())
		child.Eventually(t, limit, "a connection", func() error {
			_, _, err := conns[i].GetWithin(10*time.Second, "any")
			return err
		})
	}
	value := strings.Repeat("v", 200)
	var all sync.WaitGroup
	var done, refused atomic.Int64
	for i := range crowd {
		all.Go(func() {
			for sent := 0; sent < each; {
				switch _, err := conns[i%len(conns)].PutWithin(2*limit, fmt.Sprintf("crowd/%d", i), value); {
				case err == nil:
					sent++
					done.Add(1)
				case status.Convert(err).Message() == "etcdserver: too many requests": // code Unknown, as etcd sends it
					sent++
					refused.Add(1)
				case child.NeverSent(err): // this machine has too few resources for both sides
				default:
					t.Errorf("put: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
	close(stop)
	beside.Wait()
	if done.Load()+refused.Load() != crowd*each || done.Load() < crowd {
		t.Errorf("%d done, %d refused of %d", done.Load(), refused.Load(), crowd*each)
	}
	last, err := v.good.Maintenance.Status(ctx, &pb.StatusRequest{})
	if err != nil || last.RaftTerm != first.RaftTerm {
		t.Errorf("term %d, then %d, %v", first.RaftTerm, last.GetRaftTerm(), err)
	}
	t.Logf("%d done, %d refused; meanwhile %d renewals, %d health answers", done.Load(), refused.Load(), renewed.Load(), healthy.Load())
	if renewed.Load() == 0 || healthy.Load() == 0 {
		t.Error("nothing else was served meanwhile")
	}
	v.survives(t, before, 900)
}
