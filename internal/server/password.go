package server

import (
	"context"
	"runtime"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// maxPasswordWaiters bounds the calls that wait for a password to be hashed.
// Beyond it they are refused with ErrTooManyRequests.
const maxPasswordWaiters = 4096

// passwords hashes and compares. Either takes tens of milliseconds of a CPU by
// design, so at most half of the CPUs are at it, give way at every step, and rest
// while others wait: a storm of logins leaves the CPUs to the requests of those who
// are in. The others
// wait, in order, on the goroutines of their calls.
type passwords struct {
	cost    int
	slots   chan struct{}
	waiting atomic.Int64
	stop    <-chan struct{}
}

// newPasswords returns passwords of a bcrypt cost.
func newPasswords(cost int, stop <-chan struct{}) *passwords {
	n := max(1, runtime.GOMAXPROCS(0)/2)
	return &passwords{cost: cost, slots: make(chan struct{}, n), stop: stop}
}

// turn waits until this call may use a CPU. The caller ends it with done.
func (p *passwords) turn(ctx context.Context) (done func(), err error) {
	if p.waiting.Add(1) > maxPasswordWaiters {
		p.waiting.Add(-1)
		return nil, ErrTooManyRequests
	}
	defer p.waiting.Add(-1)
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.stop:
		return nil, rpctypes.ErrGRPCStopped
	}
}

// crowded reports whether calls wait for their turn.
func (p *passwords) crowded() bool { return p.waiting.Load() > 0 }

func (p *passwords) matches(ctx context.Context, hash []byte, password string) (bool, error) {
	done, err := p.turn(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	return matchesHash(ctx, hash, password, p.crowded)
}

func (p *passwords) hash(ctx context.Context, password string) ([]byte, error) {
	done, err := p.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return hashPassword(ctx, password, p.cost, p.crowded)
}
