package grpcproxy

import (
	"context"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// maxLeased bounds the keys that may be read through leases. Others are read from the
// members.
const maxLeased = 65_536

// leasingKV bounds what the leasing client holds, and gives it contexts of the lifetime
// that it needs.
type leasingKV struct {
	clientv3.KV             // the leasing client
	under       clientv3.KV // the KV below it

	mu   sync.Mutex
	keys map[string]struct{} // keys it may hold, up to maxLeased; guarded by mu
}

// Do bypasses the leasing client for keys beyond the limit.
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

// lasting is cancelled with its call while that is in progress, and never afterwards: the
// leasing client watches a leased key in the context of the read that leased it, and would
// retry that watch forever in a cancelled one.
type lasting struct {
	context.Context // for its values
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

// detach separates the context from the call.
func (l *lasting) detach() { l.stop() }

// Done is closed if the call ended before detach.
func (l *lasting) Done() <-chan struct{} { return l.done }

// Err returns the error of the call in that case.
func (l *lasting) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
