// Package password hashes the passwords of users, of the v3 and of the v2 API, and
// replaces the password in a request with its hash before it enters the log.
//
// In: passwords of requests, stored hashes, the cost of new ones. Out: bcrypt hashes, in
// the form that the log stores, and whether a password matches one. Always true: no
// password leaves this package, only its hash enters the log; at most half of the CPUs
// hash, and a bounded number of calls wait for their turn; a stored value that is not
// a bcrypt hash matches nothing, nor does a user without a password.
package password

import (
	"context"
	"runtime"
	"sync/atomic"

	"golang.org/x/crypto/bcrypt"
)

// Costs of a hash, the logarithm to base 2 of its rounds. A cost outside MinCost and
// MaxCost is replaced by DefaultCost, as in etcd.
const (
	MinCost     = bcrypt.MinCost
	MaxCost     = bcrypt.MaxCost
	DefaultCost = bcrypt.DefaultCost
	// v2Cost is the cost for users of the v2 API, regardless of the flag, as in etcd.
	v2Cost = 10
)

// ValidCost reports whether cost lies between MinCost and MaxCost.
func ValidCost(cost int) bool { return MinCost <= cost && cost <= MaxCost }

// maxWaiting bounds the calls that wait for their turn.
const maxWaiting = 4096

// Options of a Hasher.
type Options struct {
	Cost    int             // of new hashes of the v3 API
	Stop    <-chan struct{} // ends all waits
	Busy    error           // returned to a call when maxWaiting others wait
	Stopped error           // returned after Stop was closed
}

// Hasher hashes and compares passwords. Either takes tens of milliseconds of CPU by
// design, so at most half of the CPUs do it at a time, yield at every step, and sleep
// while other calls wait: a storm of logins leaves the CPUs to the requests of users who
// are logged in. Other calls wait, in order, on their own goroutines.
type Hasher struct {
	o       Options
	slots   chan struct{}
	waiting atomic.Int64
}

// New returns a Hasher; DefaultCost replaces an invalid cost.
func New(o Options) *Hasher {
	if !ValidCost(o.Cost) {
		o.Cost = DefaultCost
	}
	return &Hasher{o: o, slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// turn waits until this call may use a CPU. The caller must call done.
func (h *Hasher) turn(ctx context.Context) (done func(), err error) {
	if h.waiting.Add(1) > maxWaiting {
		h.waiting.Add(-1)
		return nil, h.o.Busy
	}
	defer h.waiting.Add(-1)
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.o.Stop:
		return nil, h.o.Stopped
	}
}

// crowded reports whether calls wait for their turn.
func (h *Hasher) crowded() bool { return h.waiting.Load() > 0 }

// Matches reports whether hash is that of the password. A value that is not a bcrypt
// hash matches no password.
func (h *Hasher) Matches(ctx context.Context, hash []byte, password string) (bool, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	return matchesHash(ctx, hash, password, h.crowded)
}

// Hash returns the hash of a password. It rejects passwords longer than 72 bytes.
func (h *Hasher) Hash(ctx context.Context, password string) ([]byte, error) {
	return h.hash(ctx, password, h.o.Cost)
}

// HashV2 returns the hash of a password of the v2 API.
func (h *Hasher) HashV2(ctx context.Context, password string) ([]byte, error) {
	return h.hash(ctx, password, v2Cost)
}

func (h *Hasher) hash(ctx context.Context, password string, cost int) ([]byte, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return hashPassword(ctx, password, cost, h.crowded)
}
