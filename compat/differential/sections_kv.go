package differential

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
)

// seed writes eight keys such that no two have the same create revision, modification
// revision, version or value: sorting by any of them has one right answer.
func seed(b *script) {
	order := shuffled(8)
	for _, i := range order {
		b.put(numbered("r/", i), numbered("first", 9-i))
	}
	for round := 1; round < 8; round++ {
		for _, i := range order {
			if order[i] >= round {
				b.put(numbered("r/", i), fmt.Sprintf("v%02d-%d", (i*5+1)%8, round))
			}
		}
	}
	b.grant(701, 600)
	b.putReq(&pb.PutRequest{Key: k("s/leased"), Value: k("x"), Lease: 701})
	b.put("s/gone", "1")
	b.del("s/gone", "")
	b.put("s/back", "1")
	b.del("s/back", "")
	b.put("s/back", "2")
	b.put("s/empty-value", "")
	b.put("\x00low", "binary key")
	b.put("\xff\xff", "highest key")
}

func rangeSection(b *script) {
	b.rng(&pb.RangeRequest{Key: k("nothing")}) // the empty store, revision 1
	b.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	b.rng(&pb.RangeRequest{Key: k("a"), Revision: 1})
	b.rng(&pb.RangeRequest{Key: k("a"), Revision: 2})
	seed(b)

	// Forms of the range.
	for _, r := range [][2]string{
		{"r/03", ""}, {"r/99", ""}, {"", ""}, {"", "\x00"}, {"", "r0"}, {"r/", "r0"}, {"r/02", "r/05"}, {"r/05", "r/02"},
		{"r/03", "r/03"}, {"r/03", "r/03\x00"}, {"r/05", "\x00"}, {"\x00", "\x00"}, {"\x00", ""}, {"\x00", "s"},
		{"\xff", "\x00"}, {"\xff\xff", "\x00"}, {"s/", "s0"}, {"s/gone", ""}, {"s/back", ""}, {"s/leased", ""}, {"s/empty-value", ""},
	} {
		b.rng(&pb.RangeRequest{Key: k(r[0]), RangeEnd: k(r[1])})
	}
	// Every flag on its own and together.
	all := &pb.RangeRequest{Key: k("r/"), RangeEnd: k("t")}
	with := func(f func(*pb.RangeRequest)) {
		r := &pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd}
		f(r)
		b.rng(r)
	}
	with(func(r *pb.RangeRequest) { r.KeysOnly = true })
	with(func(r *pb.RangeRequest) { r.CountOnly = true })
	with(func(r *pb.RangeRequest) { r.CountOnly, r.KeysOnly = true, true })
	with(func(r *pb.RangeRequest) { r.CountOnly, r.Limit = true, 2 })
	with(func(r *pb.RangeRequest) { r.Serializable = true })
	with(func(r *pb.RangeRequest) { r.Serializable, r.KeysOnly, r.Limit = true, true, 3 })
	with(func(r *pb.RangeRequest) { r.CountOnly, r.Revision = true, 5 })
	with(func(r *pb.RangeRequest) { r.KeysOnly, r.Revision = true, 12 })
	with(func(r *pb.RangeRequest) { r.KeysOnly, r.SortTarget = true, pb.RangeRequest_VALUE })
	with(func(r *pb.RangeRequest) {
		r.KeysOnly, r.SortTarget, r.SortOrder = true, pb.RangeRequest_KEY, pb.RangeRequest_DESCEND
	})
	with(func(r *pb.RangeRequest) { r.CountOnly, r.MinModRevision = true, 30 })
	b.rng(&pb.RangeRequest{Key: k("s/leased"), KeysOnly: true})
	b.rng(&pb.RangeRequest{Key: k("s/gone"), CountOnly: true})
	b.rng(&pb.RangeRequest{Key: k("r/03"), Limit: 1})
	for _, limit := range []int64{-1, 0, 1, 2, 8, 11, 12, 13, 1 << 40} {
		with(func(r *pb.RangeRequest) { r.Limit = limit })
	}
	// Revisions, down to the first and beyond the current one.
	for _, rev := range []int64{-1, 1, 2, 3, 8, 9, 10, 20, 37, 40, 45, 46, 47, 48, 49, 50, 1000, 1 << 62} {
		with(func(r *pb.RangeRequest) { r.Revision = rev })
	}
	for _, rev := range []int64{5, 20, 40} {
		with(func(r *pb.RangeRequest) { r.Revision, r.Limit = rev, 3 })
	}
	// Sorting: all targets in all orders, whole and cut.
	for target := pb.RangeRequest_KEY; target <= pb.RangeRequest_VALUE; target++ {
		for order := pb.RangeRequest_NONE; order <= pb.RangeRequest_DESCEND; order++ {
			for _, limit := range []int64{0, 3} {
				b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortTarget: target, SortOrder: order, Limit: limit})
			}
		}
		b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortTarget: target, SortOrder: pb.RangeRequest_DESCEND, Revision: 20})
	}
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortTarget: 7})
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortOrder: 9})
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortOrder: -1, SortTarget: -1})
	// Filters on revisions.
	for _, f := range [][4]int64{ // min mod, max mod, min create, max create
		{20, 0, 0, 0}, {0, 20, 0, 0}, {10, 30, 0, 0}, {30, 10, 0, 0}, {0, 0, 5, 0}, {0, 0, 0, 5}, {0, 0, 4, 7},
		{15, 40, 3, 8}, {1000, 0, 0, 0}, {-5, 0, 0, 0}, {0, -5, 0, 0}, {0, 0, -1, -1},
	} {
		for _, limit := range []int64{0, 2} {
			with(func(r *pb.RangeRequest) {
				r.MinModRevision, r.MaxModRevision, r.MinCreateRevision, r.MaxCreateRevision, r.Limit = f[0], f[1], f[2], f[3], limit
			})
		}
	}
	with(func(r *pb.RangeRequest) {
		r.MinModRevision, r.SortTarget, r.SortOrder, r.Limit = 10, pb.RangeRequest_MOD, pb.RangeRequest_DESCEND, 4
	})
	with(func(r *pb.RangeRequest) { r.MaxModRevision, r.Revision, r.KeysOnly = 18, 25, true })
	// A full pass in pages with its revision held, as a list with a continue token does.
	for _, from := range []string{"r/", "r/03\x00", "r/06\x00"} {
		b.rng(&pb.RangeRequest{Key: k(from), RangeEnd: k("t"), Limit: 3, Revision: 45})
	}
	// Metadata that must not matter.
	b.add("Range with hasleader and client version", func(ctx context.Context, s *session) answer {
		ctx = metadata.AppendToOutgoingContext(ctx, "hasleader", "true", "client-api-version", "3.7")
		r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k("r/01")})
		return s.answerOf(r, err)
	})
	b.add("Range with a token although authentication is off", func(ctx context.Context, s *session) answer {
		ctx = metadata.AppendToOutgoingContext(ctx, "token", "nonsense.1")
		r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k("r/01")})
		return s.answerOf(r, err)
	})
	// After a compaction.
	b.compact(30, true)
	for _, rev := range []int64{1, 29, 30, 31, 48} {
		with(func(r *pb.RangeRequest) { r.Revision = rev })
		with(func(r *pb.RangeRequest) { r.Revision, r.CountOnly = rev, true })
		b.rng(&pb.RangeRequest{Key: k("r/02"), Revision: rev, Serializable: true})
	}
	b.rng(&pb.RangeRequest{Revision: 1})
	b.everything()
}

func streamSection(b *script) {
	b.stream(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	seed(b)
	for i := range 60 {
		b.putReq(&pb.PutRequest{Key: k(fmt.Sprintf("wide/%03d", i)), Value: pattern(100 + 997*(i%31))})
	}
	for _, r := range []*pb.RangeRequest{
		{Key: []byte{0}, RangeEnd: []byte{0}},
		{Key: k("r/03")},
		{Key: k("absent")},
		{Key: k("")},
		{Key: k(""), RangeEnd: []byte{0}},
		{Key: k("wide/"), RangeEnd: k("wide0")},
		{Key: k("wide/"), RangeEnd: k("wide0"), Limit: 1},
		{Key: k("wide/"), RangeEnd: k("wide0"), Limit: 10},
		{Key: k("wide/"), RangeEnd: k("wide0"), Limit: 11},
		{Key: k("wide/"), RangeEnd: k("wide0"), Limit: 60},
		{Key: k("wide/"), RangeEnd: k("wide0"), Limit: 61},
		{Key: k("wide/"), RangeEnd: k("wide0"), CountOnly: true},
		{Key: k("wide/"), RangeEnd: k("wide0"), CountOnly: true, Limit: 5},
		{Key: k("wide/"), RangeEnd: k("wide0"), KeysOnly: true},
		{Key: k("wide/"), RangeEnd: k("wide0"), KeysOnly: true, Limit: 25},
		{Key: k("wide/"), RangeEnd: k("wide0"), Serializable: true},
		{Key: k("r/"), RangeEnd: k("t"), Revision: 20},
		{Key: k("r/"), RangeEnd: k("t"), Revision: 20, Limit: 4},
		{Key: k("r/"), RangeEnd: k("t"), Revision: 100000},
		{Key: k("r/"), RangeEnd: k("t"), Revision: -1},
		{Key: k("t"), RangeEnd: k("r/")},
		{Key: k("r/"), RangeEnd: k("t"), SortOrder: pb.RangeRequest_ASCEND},
		{Key: k("r/"), RangeEnd: k("t"), SortOrder: pb.RangeRequest_DESCEND},
		// A different sort target without an order is left out: etcd sorts each chunk of the stream by it and continues
		// after the last key of the sorted chunk, so keys come twice or not at all.
		{Key: k("r/"), RangeEnd: k("t"), SortTarget: 9},
		{Key: k("r/"), RangeEnd: k("t"), SortOrder: 9},
		{Key: k("r/"), RangeEnd: k("t"), MinModRevision: 3},
		{Key: k("r/"), RangeEnd: k("t"), MaxModRevision: 3},
		{Key: k("r/"), RangeEnd: k("t"), MinCreateRevision: 3},
		{Key: k("r/"), RangeEnd: k("t"), MaxCreateRevision: 3},
	} {
		b.stream(r)
	}
	b.compact(30, true)
	b.stream(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("t"), Revision: 29})
	b.stream(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("t"), Revision: 30})
	b.everything()
}

func putSection(b *script) {
	b.put("p/1", "a")
	b.put("p/1", "b")
	b.put("", "no key")
	b.put("p/empty", "")
	b.put("p/\x00\xff\x80", "\x00\xff\x80")
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("c"), PrevKv: true})
	b.putReq(&pb.PutRequest{Key: k("p/new"), Value: k("c"), PrevKv: true})
	b.rng(&pb.RangeRequest{Key: k("p/"), RangeEnd: k("p0")})
	// Leases.
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("d"), Lease: 99})
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("d"), Lease: -1})
	b.grant(801, 600)
	b.grant(802, 600)
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("d"), Lease: 801, PrevKv: true})
	b.timeToLive(801, true)
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("e"), Lease: 802, PrevKv: true})
	b.timeToLive(801, true)
	b.timeToLive(802, true)
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("f"), IgnoreLease: true, PrevKv: true})
	b.rng(&pb.RangeRequest{Key: k("p/1")})
	b.putReq(&pb.PutRequest{Key: k("p/1"), IgnoreValue: true, Lease: 801, PrevKv: true})
	b.rng(&pb.RangeRequest{Key: k("p/1")})
	b.putReq(&pb.PutRequest{Key: k("p/1"), IgnoreValue: true, IgnoreLease: true, PrevKv: true})
	b.rng(&pb.RangeRequest{Key: k("p/1")})
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("g"), PrevKv: true}) // detaches
	b.rng(&pb.RangeRequest{Key: k("p/1")})
	b.timeToLive(801, true)
	// Errors of the ignore flags.
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("x"), IgnoreValue: true})
	b.putReq(&pb.PutRequest{Key: k("p/1"), Lease: 801, IgnoreLease: true})
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("x"), Lease: 801, IgnoreValue: true, IgnoreLease: true})
	b.putReq(&pb.PutRequest{Key: k("p/absent"), IgnoreValue: true})
	b.putReq(&pb.PutRequest{Key: k("p/absent"), Value: k("x"), IgnoreLease: true})
	b.putReq(&pb.PutRequest{Key: k("p/absent"), IgnoreValue: true, Lease: 12345})
	b.putReq(&pb.PutRequest{IgnoreValue: true, Value: k("x")})
	// After a delete the version starts again.
	b.del("p/1", "")
	b.putReq(&pb.PutRequest{Key: k("p/1"), IgnoreValue: true})
	b.putReq(&pb.PutRequest{Key: k("p/1"), Value: k("h"), PrevKv: true})
	b.rng(&pb.RangeRequest{Key: k("p/1")})
	// Sizes: under the request limit, over it, over what the transport takes.
	b.putReq(&pb.PutRequest{Key: k("p/big"), Value: pattern(1 << 20)})
	b.putReq(&pb.PutRequest{Key: k("p/big"), Value: pattern(1572864 - 300), PrevKv: true})
	b.putReq(&pb.PutRequest{Key: k("p/big"), Value: pattern(1572864 + 1)})
	b.putReq(&pb.PutRequest{Key: k("p/big"), Value: pattern(2_000_000)})
	b.putReq(&pb.PutRequest{Key: k("p/big"), Value: pattern(2_097_152)})
	b.putReq(&pb.PutRequest{Key: k("p/big"), Value: pattern(3_000_000)})
	b.putReq(&pb.PutRequest{Key: pattern(70_000), Value: k("a long key")})
	b.rng(&pb.RangeRequest{Key: k("p/big")})
	b.rng(&pb.RangeRequest{Key: pattern(70_000)})
	b.rng(&pb.RangeRequest{Key: pattern(3_000_000)})
	b.everything()
}

func deleteSection(b *script) {
	b.del("d/none", "")
	b.del("", "")
	b.del("", "\x00")
	fill := func() {
		for i := range 9 {
			b.put(numbered("d/", i), fmt.Sprint("value ", i))
		}
	}
	fill()
	b.del("d/00", "")
	b.del("d/00", "")
	b.del("d/03", "d/01") // nothing lies between
	b.del("d/03", "d/03")
	b.delReq(&pb.DeleteRangeRequest{Key: k("d/01"), PrevKv: true})
	b.delReq(&pb.DeleteRangeRequest{Key: k("d/01"), PrevKv: true})
	b.delReq(&pb.DeleteRangeRequest{Key: k("d/02"), RangeEnd: k("d/05"), PrevKv: true})
	b.delReq(&pb.DeleteRangeRequest{Key: k("d/absent"), RangeEnd: k("d/absenu"), PrevKv: true})
	b.rng(&pb.RangeRequest{Key: k("d/"), RangeEnd: k("d0")})
	b.del("d/07", "\x00")
	b.rng(&pb.RangeRequest{Key: k("d/"), RangeEnd: k("d0")})
	fill()
	b.grant(901, 600)
	b.putReq(&pb.PutRequest{Key: k("d/04"), Value: k("leased"), Lease: 901})
	b.delReq(&pb.DeleteRangeRequest{Key: k("d/04"), PrevKv: true})
	b.timeToLive(901, true)
	b.rng(&pb.RangeRequest{Key: k("d/04"), Revision: 5})
	b.delReq(&pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true})
	b.delReq(&pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true})
	b.put("d/04", "again")
	b.everything()
	b.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: 10})
}

func compactSection(b *script) {
	b.compact(0, false)
	b.compact(1, false)
	b.compact(-3, false)
	b.compact(2, true)
	seed(b)
	b.compact(1000, true)
	b.compact(48+50, false)
	b.compact(10, false)
	b.compact(10, false)
	b.compact(9, true)
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), Revision: 9})
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), Revision: 10})
	b.compact(25, true)
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), Revision: 24})
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), Revision: 25})
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0")})
	// A transaction that reads below the compacted revision changes nothing.
	b.txn(&pb.TxnRequest{Success: ops(set("r/00", "must not be"), opRange(&pb.RangeRequest{Key: k("r/01"), Revision: 12}))})
	b.txn(&pb.TxnRequest{Success: ops(opRange(&pb.RangeRequest{Key: k("r/01"), Revision: 12}))})
	b.rng(&pb.RangeRequest{Key: k("r/00")})
	// Up to the newest revision, where only the live state remains, tombstones included.
	b.put("c/dead", "1")
	b.del("c/dead", "")
	b.add("Compact at the current revision", func(ctx context.Context, s *session) answer {
		r, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: s.rev, Physical: true})
		return s.answerOf(r, err)
	})
	b.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	b.hashKV(0)
	b.put("c/dead", "alive")
	b.rng(&pb.RangeRequest{Key: k("c/dead")})
	b.everything()
}

func hashSection(b *script) {
	b.hashKV(0)
	b.hashKV(1)
	b.hashKV(2)
	seed(b)
	for _, rev := range []int64{0, -1, 1, 2, 3, 10, 20, 37, 45, 46, 47, 60, 1000} {
		b.hashKV(rev)
	}
	b.txn(&pb.TxnRequest{Success: ops(set("h/1", "a"), set("h/2", "b"), remove("r/00", ""), remove("r/01", "r/03"))})
	b.hashKV(0)
	for _, at := range []int64{12, 30, 44} {
		b.compact(at, true)
		for _, rev := range []int64{0, at - 1, at, at + 1, 45, 47} {
			b.hashKV(rev)
		}
	}
	b.compact(46, true)
	b.hashKV(0)
	b.hashKV(46)
	b.del("r/", "r0")
	b.hashKV(0)
	b.everything()
}
