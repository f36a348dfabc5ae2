// Package password hashes the passwords of users, of the v3 and of the v2 API, and
// decides what becomes of one on its way from a request to the store.
//
// In: passwords of requests, stored hashes, the cost of new ones. Out: bcrypt hashes, in
// the form in which the log has them, and whether a password matches one. Always true: a
// password goes no further than here, the log gets its hash; at most half of the CPUs
// hash, with a bounded number of calls waiting for their turn; a stored value that is not
// a bcrypt hash matches nothing, and neither does a user without a password.
package password

import (
	"context"
	"runtime"
	"sync/atomic"

	"golang.org/x/crypto/bcrypt"
)

// Costs of a hash: 2 to the power of it are the rounds. What is not between MinCost and
// MaxCost is replaced by DefaultCost, as etcd does.
const (
	MinCost     = bcrypt.MinCost
	MaxCost     = bcrypt.MaxCost
	DefaultCost = bcrypt.DefaultCost
	// v2Cost is that of users of the v2 API, whatever the flag says, as in etcd.
	v2Cost = 10
)

// ValidCost reports whether hashes can have the cost.
func ValidCost(cost int) bool { return MinCost <= cost && cost <= MaxCost }

// maxWaiting bounds the calls that wait for their turn.
const maxWaiting = 4096

// Options of a Hasher.
type Options struct {
	Cost    int             // of new hashes of the v3 API
	Stop    <-chan struct{} // ends all waiting
	Busy    error           // what a call gets when maxWaiting others wait
	Stopped error           // and when Stop has closed
}

// Hasher hashes and compares. Either takes tens of milliseconds of a CPU by
// design, so at most half of the CPUs are at it, give way at every step, and rest
// while others wait: a storm of logins leaves the CPUs to the requests of those who
// are in. The others wait, in order, on the goroutines of their calls.
type Hasher struct {
	o       Options
	slots   chan struct{}
	waiting atomic.Int64
}

// New returns a Hasher; an invalid cost is DefaultCost.
func New(o Options) *Hasher {
	if !ValidCost(o.Cost) {
		o.Cost = DefaultCost
	}
	return &Hasher{o: o, slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// turn waits until this call may use a CPU. The caller ends it with done.
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

// Matches reports whether the password is the one that was hashed. A value that is not a
// bcrypt hash is matched by none.
func (h *Hasher) Matches(ctx context.Context, hash []byte, password string) (bool, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	return matchesHash(ctx, hash, password, h.crowded)
}

// Hash returns the hash of a password. More than 72 bytes are refused.
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
