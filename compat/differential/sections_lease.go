package differential

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func leaseSection(b *script) {
	b.leases()
	b.grant(11, 3600)
	b.grant(11, 3600)
	b.grant(12, 1) // raised to the minimum
	b.revoke(12)
	b.grant(13, 0)
	b.revoke(13)
	b.grant(14, -100)
	b.revoke(14)
	b.grant(15, 9_000_000_000)
	b.grant(16, 9_000_000_001)
	b.grant(17, 1<<62)
	b.grant(-18, 7200)
	b.grant(1<<62, 10_800)
	b.leases()
	b.add("LeaseGrant without an id", func(ctx context.Context, s *session) answer {
		r, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 5000})
		if err == nil && r.ID > 0 {
			s.name(uint64(r.ID), "(drawn lease)")
		}
		return s.answerOf(r, err)
	})
	b.leases()
	// Keys.
	for _, key := range []string{"l/b", "l/a", "l/c"} {
		b.putReq(&pb.PutRequest{Key: k(key), Value: k("x"), Lease: 11})
	}
	b.timeToLive(11, true)
	b.timeToLive(11, false)
	b.timeToLive(15, true)
	b.timeToLive(404, true)
	b.timeToLive(0, false)
	b.put("l/c", "detached")
	b.timeToLive(11, true)
	b.txn(&pb.TxnRequest{Success: ops(opPut(&pb.PutRequest{Key: k("l/d"), Lease: 11}), opPut(&pb.PutRequest{Key: k("l/e"), Lease: -18}))})
	b.timeToLive(11, true)
	b.keepAlive(11)
	b.keepAlive(404)
	b.keepAlive(11, 404, 0, 15, 11)
	b.keepAlive()
	b.revoke(404)
	b.revoke(0)
	b.watchOpen("revoke")
	b.watchCreate("revoke", &pb.WatchCreateRequest{Key: k("l/"), RangeEnd: k("l0"), PrevKv: true})
	b.revoke(11) // one revision, keys in order
	b.watchDrain("revoke")
	b.revoke(11)
	b.timeToLive(11, true)
	b.rng(&pb.RangeRequest{Key: k("l/"), RangeEnd: k("l0")})
	b.revoke(15) // without keys: the revision stays
	b.putReq(&pb.PutRequest{Key: k("l/x"), Lease: 15})
	b.leases()
	b.grant(11, 600) // an id can be used again
	b.timeToLive(11, true)
	// Expiry deletes through the log, in one revision.
	b.grant(20, 2)
	b.txn(&pb.TxnRequest{Success: ops(
		opPut(&pb.PutRequest{Key: k("l/z2"), Lease: 20}), opPut(&pb.PutRequest{Key: k("l/z1"), Lease: 20}))})
	b.until("lease 20 has expired", func(ctx context.Context, s *session) (bool, error) {
		r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k("l/z1")})
		if err != nil {
			return false, err
		}
		s.header(r.Header)
		return r.Count == 0, nil
	})
	b.watchDrain("revoke")
	b.timeToLive(20, true)
	b.keepAlive(20)
	b.revoke(20)
	// Renewal keeps a short lease alive beyond its first TTL.
	b.grant(21, 2)
	b.putReq(&pb.PutRequest{Key: k("l/kept"), Lease: 21})
	for range 3 {
		b.wait(900 * time.Millisecond)
		b.keepAlive(21)
	}
	b.rng(&pb.RangeRequest{Key: k("l/kept")})
	b.revoke(21)
	b.leases()
	b.everything()
}
