package grpcproxy

import (
	"context"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/ordering"
)

// triesPerEndpoint is the number of attempts at a read for each endpoint; the endpoints
// take turns.
const triesPerEndpoint = 5

// orderedKV rejects read answers with a lower revision than an earlier answer: they come
// from a member that lags behind.
type orderedKV struct {
	clientv3.KV
	endpoints func() []string
	seen      atomic.Int64 // the highest revision seen
}

// Get is Do for a read.
func (o *orderedKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	r, err := o.Do(ctx, clientv3.OpGet(key, opts...))
	return r.Get(), err
}

// Do retries until a member answers that is not behind. It fails with
// ordering.ErrNoGreaterRev if none does.
func (o *orderedKV) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	floor := o.seen.Load()
	for tries := triesPerEndpoint * len(o.endpoints()); ; tries-- {
		r, err := o.KV.Do(ctx, op)
		if err != nil {
			return r, err
		}
		rev := revisionOf(r)
		for seen := o.seen.Load(); rev > seen && !o.seen.CompareAndSwap(seen, rev); seen = o.seen.Load() {
		}
		// A write is not retried, and its answer is current.
		if rev >= floor || !op.IsGet() {
			return r, nil
		}
		if tries == 0 {
			return clientv3.OpResponse{}, ordering.ErrNoGreaterRev
		}
	}
}

func revisionOf(r clientv3.OpResponse) int64 {
	switch {
	case r.Get() != nil:
		return r.Get().Header.GetRevision()
	case r.Put() != nil:
		return r.Put().Header.GetRevision()
	case r.Del() != nil:
		return r.Del().Header.GetRevision()
	case r.Txn() != nil:
		return r.Txn().Header.GetRevision()
	}
	return 0
}
