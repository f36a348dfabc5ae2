package differential

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func watchSection(b *script) {
	noPut, noDelete := pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE
	b.put("w/before", "1")
	b.watchOpen("main")
	for _, r := range []*pb.WatchCreateRequest{
		{Key: k("w/a")},
		{Key: k("w/"), RangeEnd: k("w0")},
		{Key: k("w/"), RangeEnd: k("w0"), PrevKv: true},
		{Key: k("w/"), RangeEnd: k("w0"), Filters: []pb.WatchCreateRequest_FilterType{noPut}},
		{Key: k("w/"), RangeEnd: k("w0"), Filters: []pb.WatchCreateRequest_FilterType{noDelete}},
		{Key: k("w/"), RangeEnd: k("w0"), Filters: []pb.WatchCreateRequest_FilterType{noPut, noDelete}},
		{Key: k("w/"), RangeEnd: k("w0"), Filters: []pb.WatchCreateRequest_FilterType{noDelete, noDelete, 7}},
		{Key: k("w/b"), RangeEnd: []byte{0}},
		{Key: []byte{0}, RangeEnd: []byte{0}, WatchId: 500},
		{WatchId: 501},
		{RangeEnd: []byte{0}, WatchId: 502},
		{Key: []byte{0}, WatchId: 503},
		{Key: k("w/"), RangeEnd: k("w0"), StartRevision: 1, WatchId: 510},
		{Key: k("w/"), RangeEnd: k("w0"), StartRevision: 2, WatchId: 511, PrevKv: true},
		// Refused.
		{Key: k("w/z"), RangeEnd: k("w/a")},
		{Key: k("w/z"), RangeEnd: k("w/z")},
		{Key: k("w/"), StartRevision: -1},
		{Key: k("w/"), WatchId: 500},
		{Key: k("w/"), WatchId: 500, StartRevision: -1},
		{Key: k("w/z"), RangeEnd: k("w/a"), WatchId: 600},
		{Key: k("w/z"), RangeEnd: k("w/a"), WatchId: 500},
		{Key: k("w/neg"), WatchId: -7},
		// And one more, whose id shows which ids the refused ones have used up.
		{Key: k("w/next")},
	} {
		b.watchCreate("main", r)
	}
	b.watchDrain("main")
	b.put("w/a", "1")
	b.put("w/a", "2")
	b.put("w/b", "1")
	b.put("v/elsewhere", "1")
	b.del("w/a", "")
	b.del("w/a", "")
	b.put("w/a", "3")
	b.watchDrain("main")
	b.txn(&pb.TxnRequest{Success: ops(set("w/c", "1"), remove("w/a", ""), set("w/d", "1"), remove("w/b", "w/c"))})
	b.txn(&pb.TxnRequest{Success: ops(set("w/e", "1"), opTxn(&pb.TxnRequest{Success: ops(set("w/f", "1"), set("v/x", "1"))}))})
	b.txn(&pb.TxnRequest{Success: ops(get("w/e"))})
	b.del("w/", "w0")
	b.watchDrain("main")
	b.grant(55, 600)
	b.putReq(&pb.PutRequest{Key: k("w/leased"), Value: k("x"), Lease: 55})
	b.putReq(&pb.PutRequest{Key: k("w/leased"), IgnoreValue: true})
	b.revoke(55)
	b.watchDrain("main")
	// Cancelling: known, unknown and twice.
	b.watchCancel("main", 0)
	b.watchGone("main", 0)
	b.watchCancel("main", 500)
	b.watchGone("main", 500)
	b.watchCancel("main", 4711)
	b.watchCancel("main", 0)
	b.put("w/a", "after the cancel")
	b.watchDrain("main")
	b.watchCreate("main", &pb.WatchCreateRequest{Key: k("w/a"), WatchId: 500}) // the id is free again
	b.watchCreate("main", &pb.WatchCreateRequest{Key: k("w/a")})
	b.put("w/a", "again")
	b.watchDrain("main")
	// Requests without a part.
	b.watchSend("main", &pb.WatchRequest{})
	b.put("w/a", "still served")
	b.watchDrain("main")

	// History.
	b.watchOpen("past")
	for i, start := range []int64{1, 2, 3, 5, 9, 12} {
		b.watchCreate("past", &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: start, PrevKv: i%2 == 0})
	}
	b.watchDrain("past")
	b.watchCreate("past", &pb.WatchCreateRequest{Key: k("w/a"), StartRevision: 2, Filters: []pb.WatchCreateRequest_FilterType{noPut}, PrevKv: true})
	b.watchDrain("past")
	// A start revision in the future is silent until it is reached.
	b.add("Watch past create three revisions ahead", func(ctx context.Context, s *session) answer {
		return s.createWatch(ctx, "past", &pb.WatchCreateRequest{Key: k("future"), StartRevision: s.rev + 3, WatchId: 900})
	})
	for i := range 5 {
		b.put("future", fmt.Sprint(i))
	}
	b.watchDrain("past")
	// While a watcher waits for the future, its stream has no progress to report.
	b.watchOpen("far")
	b.watchCreate("far", &pb.WatchCreateRequest{Key: k("w/"), RangeEnd: k("w0"), StartRevision: 1 << 40, WatchId: 513})
	b.put("w/a", "not seen")
	b.watchCancel("far", 513)
	b.watchGone("far", 513)
	b.watchDrain("far")
	// Compacted history.
	b.compact(12, true)
	b.watchOpen("old")
	b.watchCreate("old", &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: 12, WatchId: 42})
	b.watchCreate("old", &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: 13, WatchId: 43, PrevKv: true})
	b.watchDrain("old")
	// Its own stream, and no drain: real etcd keeps a watcher that compaction has cancelled on
	// the list of those that have to be in step before the stream reports progress.
	b.watchOpen("compacted")
	b.watchCreate("compacted", &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: 3, WatchId: 40})
	b.watchGone("compacted", 40)
	b.watchCreate("compacted", &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: 11, WatchId: 41})
	b.watchGone("compacted", 41)
	b.watchSeen("compacted")
	b.watchCreate("compacted", &pb.WatchCreateRequest{Key: k("w/a"), WatchId: 40}) // a canceled id
	b.watchSeen("compacted")
	b.put("w/a", "one more")
	b.watchDrain("old")
	// Many revisions at once for a watcher that starts far back.
	for i := range 40 {
		b.txn(&pb.TxnRequest{Success: ops(set("bulk/a", fmt.Sprint(i)), set("bulk/b", fmt.Sprint(i)), set(numbered("bulk/c", i), ""))})
	}
	b.watchCreate("old", &pb.WatchCreateRequest{Key: k("bulk/"), RangeEnd: k("bulk0"), StartRevision: 20, PrevKv: true})
	b.watchDrain("old")
	b.watchDrain("main")
	b.watchDrain("past")
	// A revision too large for one message, with and without fragmentation allowed.
	b.watchOpen("large")
	b.watchCreate("large", &pb.WatchCreateRequest{Key: k("large/"), RangeEnd: k("large0"), PrevKv: true})
	b.watchCreate("large", &pb.WatchCreateRequest{Key: k("large/"), RangeEnd: k("large0"), PrevKv: true, Fragment: true})
	for range 2 {
		var list []*pb.RequestOp
		for i := range 10 {
			list = append(list, opPut(&pb.PutRequest{Key: k(numbered("large/", i)), Value: pattern(140_000)}))
		}
		b.txn(&pb.TxnRequest{Success: list})
	}
	b.watchDrain("large")
	b.watchCreate("large", &pb.WatchCreateRequest{Key: k("large/"), RangeEnd: k("large0"), StartRevision: 20, Fragment: true})
	b.watchDrain("large")
	// A watcher that asked for them gets progress notifications while idle.
	b.watchCreate("large", &pb.WatchCreateRequest{Key: k("idle"), ProgressNotify: true, WatchId: 77})
	b.add("Watch large until 77 has a progress note", func(ctx context.Context, s *session) answer {
		w, err := s.stream("large")
		if err == nil {
			err = w.await(ctx, func() bool { return w.notified[77] > 0 }, nil)
		}
		if err != nil {
			return failed(err)
		}
		return nil
	})
	b.add("Watch large: no other watcher has one", func(_ context.Context, s *session) answer {
		w, err := s.stream("large")
		if err != nil {
			return failed(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		var a answer
		a.add("watchers with progress notes", "%d", len(w.notified))
		return a
	})
	b.everything()
}
