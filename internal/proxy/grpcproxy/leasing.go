package grpcproxy

import (
	"context"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// maxLeased bounds the keys that may be read out of leases. Others are read from
// the members.
const maxLeased = 65_536

// leasingKV bounds what the leasing client keeps, and gives it contexts that
// suit what it does with them.
type leasingKV struct {
	clientv3.KV             // the leasing client
	under       clientv3.KV // what it stands on

	mu   sync.Mutex
	keys map[string]struct{} // that it may hold, up to maxLeased; guarded by mu
}

// Do asks past the leasing client for keys beyond the bound.
func (l *leasingKV) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	if op.IsGet() && len(op.RangeBytes()) == 0 && !op.IsSerializable() && op.Rev() == 0 && !l.holds(string(op.KeyBytes())) {
		return l.under.Do(ctx, op)
	}
	call := newLasting(ctx)
	defer call.detach()
	return l.KV.Do(call, op)
}

func (l *leasingKV) holds(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.keys[key]; ok {
		return true
	}
	if len(l.keys) >= maxLeased {
		return false
	}
	l.keys[key] = struct{}{}
	return true
}

// lasting ends with its call while that goes on, and not at all afterwards: a
// key that is leased is watched over in the context of the read that leased it,
// and that watch would try in vain for ever in one that has ended.
type lasting struct {
	context.Context // its values
	done            chan struct{}
	stop            func() bool

	mu  sync.Mutex
	err error
}

func newLasting(ctx context.Context) *lasting {
	l := &lasting{Context: context.WithoutCancel(ctx), done: make(chan struct{})}
	l.stop = context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.err = ctx.Err()
		close(l.done)
	})
	return l
}

// detach ends the following.
func (l *lasting) detach() { l.stop() }

// Done is closed when the call has ended before detach.
func (l *lasting) Done() <-chan struct{} { return l.done }

// Err is why.
func (l *lasting) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
