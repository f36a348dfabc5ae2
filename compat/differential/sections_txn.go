package differential

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func txnSection(b *script) {
	txn := func(success ...*pb.RequestOp) { b.txn(&pb.TxnRequest{Success: success}) }
	txn()
	txn(get("t/none"))
	seed(b)
	b.grant(601, 600)
	// One revision for all writes, sub-revisions in written order, later operations see earlier ones.
	txn(set("t/1", "a"), set("t/2", "b"), get("t/1"), getRange("t/", "t0"))
	txn(set("t/3", "c"), remove("t/1", ""), getRange("t/", "t0"), set("t/4", "d"), getRange("t/", "t0"))
	txn(opPut(&pb.PutRequest{Key: k("t/2"), Value: k("b2"), PrevKv: true, Lease: 601}), get("t/2"))
	txn(opPut(&pb.PutRequest{Key: k("t/2"), IgnoreValue: true, IgnoreLease: true}), get("t/2"))
	txn(opDelete(&pb.DeleteRangeRequest{Key: k("t/2"), RangeEnd: k("t/4"), PrevKv: true}), getRange("t/", "t0"))
	txn(set("t/1", "new"), opPut(&pb.PutRequest{Key: k("t/5"), Value: k("5"), PrevKv: true}))
	txn(remove("t/absent", ""), remove("t/absent2", "t/absent9")) // writes nothing
	txn(remove("t/1", ""), remove("t/", "t0"))                    // overlapping deletes
	txn(remove("t/", "t0"), remove("t/5", ""))
	// Reads of every kind inside.
	txn(
		opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), Limit: 2}),
		opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), CountOnly: true}),
		opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), KeysOnly: true}),
		opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), Revision: 12}),
		opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortTarget: pb.RangeRequest_VALUE, SortOrder: pb.RangeRequest_DESCEND, Limit: 3}),
		opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), MinModRevision: 15, MaxModRevision: 40}),
		opRange(&pb.RangeRequest{Key: k("r/03"), Serializable: true}),
	)
	txn(opRange(&pb.RangeRequest{Key: k("r/03"), Serializable: true}))
	txn(set("r/03", "changed"), opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), Revision: 12, Limit: 4}),
		opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortTarget: pb.RangeRequest_MOD, SortOrder: pb.RangeRequest_DESCEND}),
		opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), CountOnly: true}))
	txn(remove("r/02", ""), opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), CountOnly: true}), opRange(&pb.RangeRequest{Key: k("r/02")}))
	// The revision that the transaction itself is about to create.
	txn(set("t/self", "1"), opRange(&pb.RangeRequest{Key: k("t/self"), Revision: 10_000}))
	txn(opRange(&pb.RangeRequest{Key: k("t/self"), Revision: 10_000}))
	b.rng(&pb.RangeRequest{Key: k("t/self")})
	// Errors of parts.
	txn(set("", "x"))
	txn(get(""))
	txn(remove("", ""))
	txn(&pb.RequestOp{})
	txn(set("t/ok", "1"), &pb.RequestOp{})
	txn(opPut(&pb.PutRequest{Key: k("t/a"), Value: k("x"), IgnoreValue: true}))
	txn(opPut(&pb.PutRequest{Key: k("t/a"), Lease: 601, IgnoreLease: true}))
	txn(set("t/ok", "1"), opPut(&pb.PutRequest{Key: k("t/absent"), IgnoreValue: true}))
	txn(set("t/ok", "1"), opPut(&pb.PutRequest{Key: k("t/absent"), IgnoreLease: true, Value: k("v")}))
	txn(set("t/ok", "1"), opPut(&pb.PutRequest{Key: k("t/2"), Value: k("v"), Lease: 404}))
	txn(opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortTarget: 9}))
	txn(opRange(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), SortOrder: 9}))
	b.rng(&pb.RangeRequest{Key: k("t/"), RangeEnd: k("t0")})
	// Duplicate keys.
	txn(set("t/d", "1"), set("t/d", "2"))
	txn(set("t/d", "1"), remove("t/d", ""))
	txn(remove("t/", "t0"), set("t/d", "1"))
	txn(set("s/d", "1"), remove("t/", "\x00")) // with a key beyond t/ we refuse it, and etcd does not
	txn(set("t/d", "1"))
	txn(set("t/d", "1"), remove("t/e", "t/f"), set("t/f", "1"))
	txn(set("t/d", "1"), get("t/d"), get("t/d"))
	b.txn(&pb.TxnRequest{Success: ops(set("t/x", "1")), Failure: ops(set("t/d", "1"), set("t/d", "2"))})
	b.txn(&pb.TxnRequest{Success: ops(set("t/x", "1")), Failure: ops(set("t/x", "2"))})
	// Nested.
	inner := func(list ...*pb.RequestOp) *pb.RequestOp { return opTxn(&pb.TxnRequest{Success: list}) }
	txn(inner())
	txn(inner(get("r/01")))
	txn(inner(set("n/1", "a"), get("n/1")), get("n/1"), set("n/2", "b"))
	txn(set("n/1", "x"), inner(set("n/1", "y")))
	txn(inner(set("n/1", "x")), inner(set("n/1", "y")))
	txn(inner(set("n/3", "x")), inner(set("n/4", "y"), inner(set("n/5", "z"), getRange("n/", "n0"))))
	txn(inner(remove("n/", "n0")), set("n/1", "after"))
	txn(set("n/9", "9"), inner(remove("n/1", "n/9")), getRange("n/", "n0"))
	txn(set("n/6", "6"), opTxn(&pb.TxnRequest{
		Compare: []*pb.Compare{{Key: k("n/6"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: k("6")}}},
		Success: ops(set("n/7", "saw the put")), Failure: ops(set("n/7", "did not"), set("n/8", "8")),
	}), getRange("n/", "n0"))
	b.txn(&pb.TxnRequest{Success: ops(opTxn(&pb.TxnRequest{
		Compare: []*pb.Compare{{Key: k("n/absent"), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{}}},
		Success: ops(set("n/both", "then")), Failure: ops(set("n/both", "else")),
	}), get("n/both"))})
	txn(inner(set("", "x")))
	txn(inner(&pb.RequestOp{}))
	txn(opTxn(&pb.TxnRequest{Compare: []*pb.Compare{{}}}))
	txn(inner(opRange(&pb.RangeRequest{Key: k("a"), Revision: 1 << 40})), set("n/must-not", "be"))
	b.rng(&pb.RangeRequest{Key: k("n/must-not")})
	// Limits of 128 per list.
	many := func(n int) []*pb.RequestOp {
		var list []*pb.RequestOp
		for i := range n {
			list = append(list, set(fmt.Sprintf("m/%03d", i), "x"))
		}
		return list
	}
	compares := func(n int) []*pb.Compare {
		var list []*pb.Compare
		for range n {
			list = append(list, &pb.Compare{Key: k("m/000"), Target: pb.Compare_VERSION, Result: pb.Compare_LESS, TargetUnion: &pb.Compare_Version{Version: 99}})
		}
		return list
	}
	b.txn(&pb.TxnRequest{Success: many(128)})
	b.txn(&pb.TxnRequest{Success: many(129)})
	b.txn(&pb.TxnRequest{Failure: many(129)})
	b.txn(&pb.TxnRequest{Compare: compares(128), Success: ops(get("m/000"))})
	b.txn(&pb.TxnRequest{Compare: compares(129)})
	b.txn(&pb.TxnRequest{Success: append(many(127), inner(get("m/000")))})
	b.txn(&pb.TxnRequest{Success: append(many(126), inner(get("m/000"), get("m/001"), get("m/002")))})
	// A transaction too large for the log.
	b.txn(&pb.TxnRequest{Success: ops(
		opPut(&pb.PutRequest{Key: k("big/1"), Value: pattern(900_000)}), opPut(&pb.PutRequest{Key: k("big/2"), Value: pattern(900_000)}))})
	b.everything()
}

func compareSection(b *script) {
	seed(b)
	b.txn(&pb.TxnRequest{Success: ops(set("c/1", "m"), set("c/2", "m"), set("c/3", "m"))})
	try := func(c ...*pb.Compare) {
		b.txn(&pb.TxnRequest{Compare: c, Success: ops(get("s/back")), Failure: ops(get("s/leased"))})
	}
	// Every target with every result against smaller, equal and greater, on a present key, a
	// missing one and a deleted one.
	type side struct {
		key    string
		number [4]int64 // version, create, mod, lease
		value  string
	}
	for _, sd := range []side{
		{"s/leased", [4]int64{1, 38, 38, 701}, "x"},
		{"c/none", [4]int64{0, 0, 0, 0}, ""},
		{"s/gone", [4]int64{0, 0, 0, 0}, ""},
	} {
		for result := pb.Compare_EQUAL; result <= pb.Compare_NOT_EQUAL; result++ {
			for delta := int64(-1); delta <= 1; delta++ {
				for target := pb.Compare_VERSION; target <= pb.Compare_LEASE; target++ {
					c := &pb.Compare{Key: k(sd.key), Result: result, Target: target}
					switch target {
					case pb.Compare_VERSION:
						c.TargetUnion = &pb.Compare_Version{Version: sd.number[0] + delta}
					case pb.Compare_CREATE:
						c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: sd.number[1] + delta}
					case pb.Compare_MOD:
						c.TargetUnion = &pb.Compare_ModRevision{ModRevision: sd.number[2] + delta}
					case pb.Compare_LEASE:
						c.TargetUnion = &pb.Compare_Lease{Lease: sd.number[3] + delta}
					case pb.Compare_VALUE:
						c.TargetUnion = &pb.Compare_Value{Value: []byte{"wxy"[1+delta]}}
					}
					try(c)
				}
			}
		}
	}
	// Over ranges.
	value := func(key, end string, result pb.Compare_CompareResult, v string) *pb.Compare {
		return &pb.Compare{Key: k(key), RangeEnd: k(end), Result: result, Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: k(v)}}
	}
	version := func(key, end string, result pb.Compare_CompareResult, v int64) *pb.Compare {
		return &pb.Compare{Key: k(key), RangeEnd: k(end), Result: result, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: v}}
	}
	try(value("c/", "c0", pb.Compare_EQUAL, "m"))
	try(value("c/", "c0", pb.Compare_NOT_EQUAL, "m"))
	try(value("c/", "c0", pb.Compare_GREATER, "l"))
	try(value("r/", "r0", pb.Compare_EQUAL, "m"))
	try(value("x/", "x0", pb.Compare_EQUAL, "m"))
	try(value("x/", "x0", pb.Compare_NOT_EQUAL, "m"))
	try(version("c/", "c0", pb.Compare_EQUAL, 1))
	try(version("c/", "c0", pb.Compare_GREATER, 1))
	try(version("c/", "\x00", pb.Compare_GREATER, 0))
	try(version("r/", "r0", pb.Compare_GREATER, 0))
	try(version("r/", "r0", pb.Compare_GREATER, 1))
	try(version("x/", "x0", pb.Compare_EQUAL, 0))
	try(version("x/", "x0", pb.Compare_GREATER, 0))
	try(version("c/3", "c/1", pb.Compare_EQUAL, 0))
	try(version("\x00", "\x00", pb.Compare_LESS, 100))
	// Several compares are a conjunction.
	try(version("c/1", "", pb.Compare_EQUAL, 1), value("c/2", "", pb.Compare_EQUAL, "m"))
	try(version("c/1", "", pb.Compare_EQUAL, 1), value("c/2", "", pb.Compare_EQUAL, "n"))
	// Forms that miss something.
	try(&pb.Compare{})
	try(&pb.Compare{Key: k("c/1")})
	try(&pb.Compare{Key: k("c/1"), Target: pb.Compare_VALUE})
	try(&pb.Compare{Key: k("c/none"), Target: pb.Compare_LEASE})
	try(&pb.Compare{Key: k("c/1"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_Version{Version: 1}}) // union of another target
	try(&pb.Compare{Key: k("c/1"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Version{Version: 1}})
	try(&pb.Compare{Key: k("c/1"), Target: 17, TargetUnion: &pb.Compare_Version{Version: 1}})
	try(&pb.Compare{Key: k("c/1"), Result: 17, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 1}})
	b.txn(&pb.TxnRequest{Compare: []*pb.Compare{version("c/1", "", pb.Compare_EQUAL, 7)}, Success: ops(set("c/1", "no"))})
	b.txn(&pb.TxnRequest{Compare: []*pb.Compare{version("c/1", "", pb.Compare_EQUAL, 1)}, Success: ops(set("c/1", "yes"))})
	b.everything()
}
