package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"quorate/bench/lean"
)

var keepaliveRows = []string{"keepalive.cpu", "keepalive.rate"}

// leaseTTL is longer than a run, so that no lease expires in it.
const leaseTTL = 7200

// keeper is a client that renews its lease again and again, on a stream of its own.
type keeper struct {
	conn  *lean.Conn
	call  lean.Call
	lease int64
	end   time.Time
	left  *sync.WaitGroup

	over      bool // no more requests
	began     time.Time
	latencies []time.Duration
	err       error
}

// newKeeper grants a lease.
func newKeeper(ctx context.Context, conn *lean.Conn, left *sync.WaitGroup) (*keeper, error) {
	granted := &reply{keep: true}
	if err := call(ctx, conn, methodGrant, appendInt(nil, 1, leaseTTL), granted); err != nil {
		return nil, err
	}
	id, err := intField(granted.body, 2)
	if err == nil && id == 0 {
		err = errors.New("a lease without an id")
	}
	k := &keeper{conn: conn, lease: id, left: left}
	k.call.OnMessage, k.call.OnEnd = k.renewed, k.ended
	return k, err
}

func (k *keeper) request(b []byte) []byte { return appendInt(b, 1, k.lease) }

func (k *keeper) renewed(b []byte) {
	if k.over {
		return
	}
	now := time.Now()
	k.latencies = append(k.latencies, now.Sub(k.began))
	switch ttl, err := intField(b, 3); {
	case err != nil || ttl != leaseTTL:
		k.finish(errors.Join(fmt.Errorf("lease %d was renewed for %d s", k.lease, ttl), err))
	case now.After(k.end):
		k.finish(nil)
	default:
		k.began = now
		if err := k.conn.Send(&k.call, k.request, false); err != nil {
			k.finish(err)
		}
	}
}

func (k *keeper) ended(err error) { k.finish(fmt.Errorf("a stream of renewals has ended: %w", err)) }

func (k *keeper) finish(err error) {
	if !k.over {
		k.over, k.err = true, err
		k.left.Done()
	}
}

// keepalives has n clients renew their leases for a span.
func keepalives(ctx context.Context, c *clients, keepers []*keeper, left *sync.WaitGroup, span time.Duration) (outcome, error) {
	defer context.AfterFunc(ctx, func() { c.abort(ctx.Err()) })()
	late := time.AfterFunc(span+callTimeout, func() { c.abort(errors.New("a renewal takes too long")) })
	defer late.Stop()
	start := time.Now()
	left.Add(len(keepers))
	for _, k := range keepers {
		k.began, k.end = time.Now(), start.Add(span)
		if err := k.conn.Start(&k.call, methodKeepalive, k.request, false); err != nil {
			k.finish(err)
		}
	}
	left.Wait()
	o := outcome{elapsed: time.Since(start)}
	var errs []error
	for _, k := range keepers {
		k.conn.Cancel(&k.call)
		o.latencies = append(o.latencies, k.latencies...)
		errs = append(errs, k.err)
	}
	o.ops = len(o.latencies)
	slices.Sort(o.latencies)
	return o, errors.Join(errs...)
}

// keepalive measures renewals on one side.
func (r *run) keepalive(ctx context.Context, s *side) (map[string]float64, error) {
	left := new(sync.WaitGroup)
	var keepers []*keeper
	for i := range r.scale.clients {
		k, err := newKeeper(ctx, s.clients.conns[i%len(s.clients.conns)], left)
		if err != nil {
			return nil, err
		}
		keepers = append(keepers, k)
	}
	o, cpu, err := r.loaded(s, func() (outcome, error) { return keepalives(ctx, s.clients, keepers, left, r.scale.span) })
	return map[string]float64{"keepalive.cpu": micros(cpu, max(1, o.ops)), "keepalive.rate": o.perSecond()}, err
}
