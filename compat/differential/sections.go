package differential

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func sections() []section {
	build := func(name string, fill func(*script), args ...string) section {
		b := &script{}
		fill(b)
		return section{name, args, b.ops}
	}
	return []section{
		build("range", rangeSection),
		build("stream", streamSection),
		build("put", putSection),
		build("delete", deleteSection),
		build("txn", txnSection),
		build("compare", compareSection),
		build("compact", compactSection),
		build("hash", hashSection),
		build("lease", leaseSection),
		build("watch", watchSection, "--watch-progress-notify-interval=1s"),
		build("maintenance", maintenanceSection),
		build("cluster", clusterSection),
		build("raw", rawSection),
		build("limits", limitsSection, "--max-txn-ops=4", "--max-request-bytes=4096"),
		build("auth", authSection),
		build("jwt", jwtSection, "--auth-token=jwt,sign-method=HS256,priv-key="+jwtKeyFile+",ttl=1h", "--bcrypt-cost=4"),
		build("locks", locksSection),
	}
}

func k(s string) []byte { return []byte(s) }

// opRange and its siblings wrap a request as an operation of a transaction.
func opRange(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func opPut(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

func opDelete(r *pb.DeleteRangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}
}

func opTxn(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

func get(key string) *pb.RequestOp { return opRange(&pb.RangeRequest{Key: k(key)}) }

func getRange(key, end string) *pb.RequestOp {
	return opRange(&pb.RangeRequest{Key: k(key), RangeEnd: k(end)})
}

func set(key, value string) *pb.RequestOp {
	return opPut(&pb.PutRequest{Key: k(key), Value: k(value)})
}

func remove(key, end string) *pb.RequestOp {
	return opDelete(&pb.DeleteRangeRequest{Key: k(key), RangeEnd: k(end)})
}

func ops(list ...*pb.RequestOp) []*pb.RequestOp { return list }

// pattern returns n bytes that vary with their position.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + (i*7+i/251)%26)
	}
	return b
}

// shuffled is 0..n-1 in a fixed order that is neither rising nor falling; n must not divide by 7.
func shuffled(n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = (i*7 + 3) % n
	}
	return order
}

func numbered(prefix string, i int) string { return fmt.Sprintf("%s%02d", prefix, i) }
