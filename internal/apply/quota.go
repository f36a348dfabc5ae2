package apply

import (
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/engine"
)

// quota decides whether the store has room for a request. It is safe for concurrent use.
type quota struct {
	eng   engine.Engine
	limit int64 // in bytes; 0 or less: none
	// size is the physical size of the engine at the last SetSize, plus the bytes written
	// since: querying the engine is too expensive for every request.
	size atomic.Int64
}

// What a request may add to the store, in bytes, as etcd counts it.
const (
	putOverhead = 256
	leaseCost   = 64
)

func putCost(p *pb.PutRequest) int64 { return putOverhead + int64(len(p.Key)+len(p.Value)) }

// TxnCost returns what a transaction may add, the larger of the two
// branches, in bytes.
func TxnCost(t *pb.TxnRequest) int64 { return max(opsCost(t.Success), opsCost(t.Failure)) }

func opsCost(ops []*pb.RequestOp) (n int64) {
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			n += putCost(p)
		} else if t := op.GetRequestTxn(); t != nil {
			n += TxnCost(t)
		}
	}
	return n
}

// Cost returns what a request may add to the store, in bytes; 0 for requests
// that are free.
func Cost(r *pb.InternalRaftRequest) int64 {
	switch {
	case r.Put != nil:
		return putCost(r.Put)
	case r.Txn != nil:
		return TxnCost(r.Txn)
	case r.LeaseGrant != nil:
		return leaseCost
	}
	return 0
}

// exceeded reports whether the store has no room for n more bytes. If the known
// size exceeds the quota, exceeded queries the engine, as that size may be from
// before a compaction.
func (q *quota) exceeded(n int64) bool {
	if q.limit <= 0 || n <= 0 || q.size.Load()+n <= q.limit {
		return false
	}
	q.size.Store(q.eng.Size().Total)
	return q.size.Load()+n > q.limit
}

// exceededBy reports whether the store has no room for what a request may add.
func (q *quota) exceededBy(r *pb.InternalRaftRequest) bool {
	return q.limit > 0 && q.exceeded(Cost(r))
}
