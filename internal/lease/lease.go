// Package lease owns leases, the keys attached to them, and the queue of expiries.
//
// In: committed grants, revokes, attachments and checkpoints from the apply
// goroutine; renewals and queries from RPC goroutines; promotions from the raft
// loop; the current time, always as an argument. Out: lease records in the batch of
// the entry that changes them, the keys that a revoke must delete, the leases that
// are due for a revoke and the checkpoints that are due for a proposal.
//
// Always true:
//   - What is stored and what Revoke returns depends only on the applied entries.
//     Time decides only what is proposed, never what an applied entry does.
//   - Only the primary (the lessor of the raft leader) expires and renews leases. On
//     all other members a lease lasts until its revoke is applied.
//   - Only an applied revoke removes a lease from the map, in the batch that deletes
//     its record. Until then, Expired returns an expired lease again and again.
//
// Bounds: a TTL lies between the member's minimum and MaxTTL. The number of leases
// has no limit of its own: each one is a record in the engine, and the space quota
// rejects grants once the engine is full. An attachment exists only for a live key.
// Expired and CheckpointsDue return at most MaxExpired and MaxCheckpoints items per
// call.
package lease

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"quorate/internal/engine"
	"quorate/internal/metrics"
)

const (
	// MaxTTL is the longest TTL of a lease in seconds.
	MaxTTL = 9_000_000_000
	// MaxExpired bounds the leases that one call of Expired returns. With a call every
	// 500 ms it keeps the rate of revokes below 1000 per second.
	MaxExpired = 500
	// MaxCheckpoints bounds the checkpoints that one call of CheckpointsDue returns.
	MaxCheckpoints = 1000

	defaultCheckpointInterval = 5 * time.Minute
	defaultRetryInterval      = 3 * time.Second

	// A new primary starts all leases again. From pileUp leases on, it spreads the
	// expiries to spreadRate per second, below the rate of revokes, so that leases that
	// expire meanwhile do not wait for an old pile-up.
	pileUp     = 1000
	spreadRate = 750
)

var (
	// ErrLeaseNotFound is returned for an id that has no lease, and for id 0.
	ErrLeaseNotFound = errors.New("lease not found")
	// ErrLeaseExists is returned by Grant for an id in use.
	ErrLeaseExists = errors.New("lease already exists")
	// ErrLeaseTTLTooLarge is returned by Grant for a TTL above MaxTTL.
	ErrLeaseTTLTooLarge = errors.New("too large lease TTL")
	// ErrNotPrimary is returned by Renew and TimeToLive on a member that is not the
	// leader. Clients see this text.
	ErrNotPrimary = errors.New("not a primary lessor")
)

// ID is a lease id. 0 means no lease.
type ID int64

// String returns the id as etcd prints it: hexadecimal, with all 16 digits.
func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Lease is a grant. Times are in seconds.
type Lease struct {
	ID  ID
	TTL int64
	// RemainingTTL is the last checkpoint; 0 or less means that there is none.
	RemainingTTL int64
}

// Status is a lease as the primary sees it.
type Status struct {
	ID         ID
	TTL        int64 // whole seconds left, rounded toward zero; negative if the revoke is late
	GrantedTTL int64
	Keys       [][]byte // sorted; only if asked for
}

// Checkpoint is the remaining TTL of a lease in seconds; 0 clears a checkpoint.
type Checkpoint struct {
	ID        ID
	Remaining int64
}

// Renewal is the outcome of Renew. At most one of Wait and Reset is set; if one is,
// the lease has not been renewed yet.
type Renewal struct {
	// TTL is the granted TTL in seconds, which starts again.
	TTL int64
	// Wait is set for a lease that has expired but has not been revoked yet. It is
	// closed when the lease is revoked or the primary is demoted. The caller then calls
	// Renew again, which reports which of the two happened.
	Wait <-chan struct{}
	// Reset is set if the lease has, or may get, a checkpoint, which must be cleared first:
	// propose the request of Clear, wait until it is applied, call Cleared, and Renew again.
	Reset bool
}

// Options of a Lessor. The zero value is etcd's default: no checkpoints.
type Options struct {
	// Checkpoints turns on CheckpointsDue and Renewal.Reset.
	Checkpoints bool
	// CheckpointInterval is the time between checkpoints of a lease; 0 means 5
	// minutes. A lease with a shorter TTL has no checkpoints.
	CheckpointInterval time.Duration
	// RetryInterval is the time after which Expired returns an expired lease again if
	// its revoke has not been applied; 0 means 3 seconds.
	RetryInterval time.Duration
}

// lease is one grant. Guarded by Lessor.mu.
type lease struct {
	Lease
	expiry time.Time // zero on a member that is not primary
	// wake is when Expired returns the lease: at its expiry, or later if it has been
	// returned before. wakePos is the position in the queue, -1 if not queued.
	wake    time.Time
	wakePos int
	// due is when CheckpointsDue considers the lease.
	due    time.Time
	duePos int

	keys    keySet
	revoked chan struct{} // created by the first renewal that has to wait
	// made counts the checkpoints that CheckpointsDue has returned since the promotion. The
	// first cleared of them have no effect any more: what clears them is behind them in the
	// log, and is applied. Each attempt knows how many are before it. Several may be in
	// flight, with a checkpoint between them that the first one does not clear.
	made, cleared uint64
}

// Lessor holds the leases of one member. Only the apply goroutine may call Grant,
// Revoke, Attach, Detach, Checkpoint and Load; all other methods are safe for
// concurrent use.
type Lessor struct {
	minTTL int64
	o      Options

	mu      sync.RWMutex
	primary bool
	reign   uint64 // counts promotions
	leases  map[ID]*lease
	wakes   queue // leases by wake; empty unless primary
	dues    queue // leases by due; empty unless primary and checkpoints are on
}

// New returns an empty lessor. minTTL is in seconds; shorter TTLs are raised to it.
func New(minTTL int64, o Options) *Lessor {
	if o.CheckpointInterval <= 0 {
		o.CheckpointInterval = defaultCheckpointInterval
	}
	if o.RetryInterval <= 0 {
		o.RetryInterval = defaultRetryInterval
	}
	return &Lessor{
		minTTL: minTTL,
		o:      o,
		leases: make(map[ID]*lease),
		wakes:  queue{key: func(l *lease) time.Time { return l.wake }, pos: func(l *lease) *int { return &l.wakePos }},
		dues:   queue{key: func(l *lease) time.Time { return l.due }, pos: func(l *lease) *int { return &l.duePos }},
	}
}

// Load replaces the leases with the records in eng and demotes the lessor. The
// caller then attaches every live key that has a lease. If a record cannot be
// decoded, Load returns an *engine.CorruptionError with its key and keeps the old
// leases.
func (l *Lessor) Load(eng engine.Reader) error {
	leases := make(map[ID]*lease)
	it, err := eng.NewIter(engine.Lease.Bounds())
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			return fmt.Errorf("read leases: %w", err)
		}
		rec, err := decodeRecord(it.Key()[1:], v)
		if err != nil {
			return &engine.CorruptionError{File: fmt.Sprintf("lease record %x", it.Key()[1:]), Err: err}
		}
		rec.TTL = max(rec.TTL, l.minTTL)
		leases[rec.ID] = &lease{Lease: rec, wakePos: -1, duePos: -1}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.demoteLocked()
	l.leases = leases
	return nil
}

// Grant adds a lease and its record. now only starts the local expiry. The returned
// lease has the TTL after it was raised to the minimum.
func (l *Lessor) Grant(b engine.Batch, now time.Time, id ID, ttl int64) (Lease, error) {
	if id == 0 {
		return Lease{}, ErrLeaseNotFound
	}
	if ttl > MaxTTL {
		return Lease{}, ErrLeaseTTLTooLarge
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leases[id] != nil {
		return Lease{}, ErrLeaseExists
	}
	x := &lease{Lease: Lease{ID: id, TTL: max(ttl, l.minTTL)}, wakePos: -1, duePos: -1}
	l.leases[id] = x
	putRecord(b, x.Lease)
	if l.primary {
		l.startLocked(x, now.Add(seconds(x.TTL)))
		l.scheduleLocked(x, now)
	}
	metrics.DebuggingLeaseGrantedTotal.Inc()
	metrics.DebuggingLeaseTTLTotal.Observe(float64(x.TTL))
	return x.Lease, nil
}

// Revoke removes a lease and its record and returns its keys, sorted by bytes.
// The caller deletes the keys in the same batch.
func (l *Lessor) Revoke(b engine.Batch, id ID) ([][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.leases[id]
	if x == nil {
		return nil, ErrLeaseNotFound
	}
	delete(l.leases, id)
	l.wakes.remove(x)
	l.dues.remove(x)
	x.release()
	k := recordKey(id)
	b.Delete(engine.Lease.K(k[:]))
	metrics.DebuggingLeaseRevokedTotal.Inc()
	return x.keys.sorted(), nil
}

// Attach attaches a copy of key to a lease; Revoke will return it. It is idempotent,
// and must not be called for keys without a lease.
func (l *Lessor) Attach(id ID, key []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.leases[id]
	if x == nil {
		return ErrLeaseNotFound
	}
	x.keys.add(key)
	return nil
}

// Detach undoes Attach. It ignores unknown leases and keys: when a revoke deletes its
// keys, the lease is already gone.
func (l *Lessor) Detach(id ID, key []byte) {
	if id == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.leases[id]; x != nil {
		x.keys.remove(key)
	}
}

// Exists reports whether the lease was granted and not revoked.
func (l *Lessor) Exists(id ID) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.leases[id] != nil
}

// Len returns the number of leases.
func (l *Lessor) Len() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.leases)
}

// Keys returns the keys attached to a lease, in byte order; nil for an unknown lease.
func (l *Lessor) Keys(id ID) [][]byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	x := l.leases[id]
	if x == nil {
		return nil
	}
	return x.keys.sorted()
}

// Checkpoint applies a checkpoint: the next promotion gives the lease only that many
// seconds. With persist it also writes the record, so that the checkpoint survives a
// restart. It ignores an unknown lease, whose revoke may have been applied before the
// checkpoint.
func (l *Lessor) Checkpoint(b engine.Batch, c Checkpoint, persist bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.leases[c.ID]
	if x == nil {
		return
	}
	x.RemainingTTL = c.Remaining
	if persist {
		putRecord(b, x.Lease)
	}
}

// IsPrimary reports whether this lessor expires and renews leases.
func (l *Lessor) IsPrimary() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.primary
}

// Promote makes the lessor primary. Each lease starts again, with the remaining TTL
// of its last checkpoint or else its full TTL, plus extend: the time in which clients
// could not renew because there was no leader.
func (l *Lessor) Promote(now time.Time, extend time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.demoteLocked()
	l.primary = true
	l.reign++
	all := make([]*lease, 0, len(l.leases))
	for _, x := range l.leases {
		x.expiry = now.Add(extend).Add(seconds(x.left()))
		all = append(all, x)
	}
	slices.SortFunc(all, byExpiry)
	if len(all) >= pileUp {
		spread(all)
	}
	for _, x := range all {
		l.startLocked(x, x.expiry)
		l.scheduleLocked(x, now)
	}
}

// spread postpones expiries, keeping their order, until no second contains more than
// spreadRate of them.
func spread(all []*lease) {
	for i := spreadRate; i < len(all); i++ {
		if t := all[i-spreadRate].expiry.Add(time.Second); all[i].expiry.Before(t) {
			all[i].expiry = t
		}
	}
}

// Demote makes the lessor stop expiring and renewing leases, and wakes up waiting
// renewals.
func (l *Lessor) Demote() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.demoteLocked()
}

func (l *Lessor) demoteLocked() {
	l.primary = false
	for _, x := range l.leases {
		x.expiry, x.wake, x.due = time.Time{}, time.Time{}, time.Time{}
		x.wakePos, x.duePos = -1, -1
		x.made, x.cleared = 0, 0
		x.release()
	}
	l.wakes.items, l.dues.items = nil, nil
}

// Renew starts the TTL of a lease again. See Renewal for the two cases in which the
// caller has to retry.
func (l *Lessor) Renew(now time.Time, id ID) (Renewal, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.primary {
		return Renewal{}, ErrNotPrimary
	}
	x := l.leases[id]
	if x == nil {
		return Renewal{}, ErrLeaseNotFound
	}
	if !now.Before(x.expiry) {
		// Its revoke may be in flight, and could be applied after a renewal now.
		if x.revoked == nil {
			x.revoked = make(chan struct{})
		}
		return Renewal{Wait: x.revoked}, nil
	}
	// A checkpoint that was proposed and is not applied yet would outlast the renewal: the
	// next leader would give the lease less than what the client is told now.
	if l.o.Checkpoints && (x.RemainingTTL > 0 || x.made > x.cleared) {
		return Renewal{Reset: true}, nil
	}
	l.startLocked(x, now.Add(seconds(x.TTL)))
	if x.duePos < 0 {
		l.scheduleLocked(x, now)
	}
	metrics.DebuggingLeaseRenewedTotal.Inc()
	return Renewal{TTL: x.TTL}, nil
}

// TimeToLive returns the remaining TTL of a lease. Only the primary knows it.
func (l *Lessor) TimeToLive(now time.Time, id ID, keys bool) (Status, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	x := l.leases[id]
	if x == nil {
		return Status{}, ErrLeaseNotFound
	}
	if !l.primary {
		return Status{}, ErrNotPrimary
	}
	st := Status{ID: id, TTL: int64(x.expiry.Sub(now) / time.Second), GrantedTTL: x.TTL}
	if keys {
		st.Keys = x.keys.sorted()
	}
	return st, nil
}

// List returns all leases by expiry, then by id. A member that is not primary knows
// no expiries and returns them by id.
func (l *Lessor) List() []Lease {
	l.mu.RLock()
	all := make([]*lease, 0, len(l.leases))
	for _, x := range l.leases {
		all = append(all, x)
	}
	slices.SortFunc(all, byExpiry)
	out := make([]Lease, len(all))
	for i, x := range all {
		out[i] = x.Lease
	}
	l.mu.RUnlock()
	return out
}

// Expired returns up to limit (at most MaxExpired) expired leases, the one that
// expired first in front. The caller proposes their revokes. A lease that still exists
// after the retry interval is returned again.
func (l *Lessor) Expired(now time.Time, limit int) []ID {
	limit = min(limit, MaxExpired)
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []ID
	for len(ids) < limit && len(l.wakes.items) > 0 {
		x := l.wakes.items[0]
		if now.Before(x.wake) {
			break
		}
		ids = append(ids, x.ID)
		x.wake = now.Add(l.o.RetryInterval)
		l.wakes.fix(x)
	}
	return ids
}

// CheckpointsDue returns the checkpoints to propose now, at most MaxCheckpoints. It
// schedules the next ones at once: a failed proposal is not retried before the next
// interval.
func (l *Lessor) CheckpointsDue(now time.Time) []Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Checkpoint
	for len(out) < MaxCheckpoints && len(l.dues.items) > 0 {
		x := l.dues.items[0]
		if now.Before(x.due) {
			break
		}
		left := x.expiry.Sub(now)
		// A lease that has expired, or was renewed within the last second, needs no
		// checkpoint.
		if remaining := ceilSeconds(left); left > 0 && remaining < x.TTL {
			out = append(out, Checkpoint{ID: x.ID, Remaining: remaining})
			x.made++
		}
		if left > l.o.CheckpointInterval {
			x.due = now.Add(l.o.CheckpointInterval)
			l.dues.fix(x)
		} else {
			l.dues.remove(x) // the next renewal schedules it again
		}
	}
	return out
}

// startLocked sets the expiry and queues the lease.
func (l *Lessor) startLocked(x *lease, expiry time.Time) {
	x.expiry, x.wake = expiry, expiry
	if x.wakePos < 0 {
		l.wakes.add(x)
	} else {
		l.wakes.fix(x)
	}
}

// scheduleLocked queues the next checkpoint if the lease lives long enough.
func (l *Lessor) scheduleLocked(x *lease, now time.Time) {
	if !l.o.Checkpoints || x.expiry.Sub(now) <= l.o.CheckpointInterval {
		return
	}
	x.due = now.Add(l.o.CheckpointInterval)
	if x.duePos < 0 {
		l.dues.add(x)
	} else {
		l.dues.fix(x)
	}
}

// left returns the seconds that a promotion gives. A checkpoint comes from the log,
// hence from a peer: values above the TTL are ignored.
func (x *lease) left() int64 {
	if x.RemainingTTL > 0 {
		return min(x.RemainingTTL, x.TTL)
	}
	return x.TTL
}

// release wakes up the renewals that wait for the lease.
func (x *lease) release() {
	if x.revoked != nil {
		close(x.revoked)
		x.revoked = nil
	}
}

func byExpiry(a, b *lease) int {
	if c := a.expiry.Compare(b.expiry); c != 0 {
		return c
	}
	if a.ID < b.ID {
		return -1
	}
	return 1 // ids are unique
}

// seconds converts a TTL; with MaxTTL it does not overflow a Duration.
func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

func ceilSeconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

// recordKey returns the key of a lease in its bucket: the id, big endian.
func recordKey(id ID) (k [8]byte) {
	binary.BigEndian.PutUint64(k[:], uint64(id))
	return k
}

func putRecord(b engine.Batch, x Lease) {
	k := recordKey(x.ID)
	b.Set(engine.Lease.K(k[:]), appendRecord(nil, x))
}
