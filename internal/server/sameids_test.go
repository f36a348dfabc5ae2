package server

import (
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/legacy/v2request"
	"quorate/internal/proposal"
)

// All members assign the same numbers to their requests. Each still applies the log correctly
// (the harness compares), and no client gets the result of another member's request.
func TestSameNumbers(t *testing.T) {
	c := prepareCluster(t, 3, calm)
	at := time.Now()
	c.opened = func(m *Member) { m.replica.ids = proposal.NewIDs(1, at) }
	c.launch()
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		for w := range 8 {
			wg.Go(func() {
				for j := range 60 {
					key := fmt.Appendf(nil, "k/%d/%d/%d", i, w, j)
					resp, err := n.m.KV.Put(background(t), &pb.PutRequest{Key: key, Value: []byte(n.name), PrevKv: true}, nil)
					if err != nil {
						continue // an election; unacknowledged writes may be missing
					}
					res, err := n.m.KV.Range(AsRoot(background(t)), &pb.RangeRequest{Key: key, Serializable: true})
					if err != nil || len(res.KVs) != 1 || decodeKV(t, res.KVs[0]).ModRevision != resp.Header.Revision {
						t.Errorf("%s was acknowledged at revision %d and reads as %v, %v", key, resp.Header.Revision, res, err)
					}
				}
			})
		}
		wg.Go(func() {
			for j := range 20 {
				n.m.V2.V2Do(background(t), &v2request.Request{Method: "PUT", Path: fmt.Sprintf("/1/%d/%d", i, j), Val: n.name})
			}
		})
		wg.Go(func() {
			for range 20 {
				if r, err := n.m.Leases.LeaseGrant(background(t), &pb.LeaseGrantRequest{TTL: 100}); err == nil {
					n.m.Leases.LeaseRevoke(background(t), &pb.LeaseRevokeRequest{ID: r.ID})
				}
			}
		})
	}
	wg.Wait()
	c.sameHash()
}
