package main

import (
	"context"
	"fmt"
	"time"
)

// A store in service: its keys were written one by one, in random order, so that neighbours lie far apart in the
// order of revisions.

const (
	serviceClients = 50
	serviceValue   = 1024
)

var (
	serviceRows   = rowsOfService("service")
	service1MRows = rowsOfService("service1m")
)

func rowsOfService(prefix string) []string {
	var out []string
	for _, when := range []string{".", ".re."} {
		for _, what := range []string{"list100.cpu", "list1000.cpu", "all.cpu", "put.cpu", "put.rate"} {
			out = append(out, prefix+when+what)
		}
	}
	return out
}

func (r *run) service(ctx context.Context)   { r.inService(ctx, "service", r.scale.listKeys) }
func (r *run) service1M(ctx context.Context) { r.inService(ctx, "service1m", r.scale.bigKeys) }

// scattered is the i-th of n keys in a pseudo-random permutation.
func scattered(i, n int) int {
	const step = 777_767_777 // a prime that divides no n here
	return int(uint64(i) * step % uint64(n))
}

func (r *run) inService(ctx context.Context, prefix string, keys int) {
	rows := rowsOfService(prefix)
	put := func(shift uint64) func(b []byte, seq int) []byte {
		return func(b []byte, seq int) []byte {
			var key [keySize]byte
			var value [serviceValue]byte
			return putRequest(b, keyAt(key[:], "list", scattered(seq%keys, keys)), valueAt(value[:], uint64(seq)+shift))
		}
	}
	failed := len(r.res.failed)
	r.step(ctx, rows, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		o, err := (&loop{method: methodPut, request: put(0), most: keys}).run(ctx, s.clients, serviceClients, 10*time.Minute)
		if err == nil && o.ops != keys {
			err = fmt.Errorf("%d of %d keys have been written", o.ops, keys)
		}
		if err == nil {
			_, err = residentAfter(ctx, s)
		}
		return nil, err
	})
	if len(r.res.failed) > failed {
		return
	}
	for i := range 2 { // before and after a restart
		five := rows[5*i : 5*i+5]
		if i == 1 {
			r.step(ctx, five, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
				_, err := r.restart(ctx, s, true)
				return nil, err
			})
		}
		for j, limit := range []int64{100, 1000} {
			r.step(ctx, five[j:j+1], r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
				o, cpu, err := r.lists(ctx, s, "list", rangeOptions{limit: limit})
				return map[string]float64{five[j]: micros(cpu, max(1, o.ops)) / 1e3}, err
			})
		}
		r.step(ctx, five[2:3], r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
			all := &reply{}
			_, cpu, err := r.loaded(s, func() (outcome, error) {
				return outcome{}, call(ctx, s.clients.conns[0], methodRange, rangeRequest(nil, []byte("list/"), rangeOptions{end: []byte("list0")}), all)
			})
			if err == nil && all.size < keys*serviceValue {
				err = fmt.Errorf("list of everything has only %d bytes", all.size)
			}
			return map[string]float64{five[2]: cpu.Seconds()}, err
		})
		r.step(ctx, five[3:], r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
			o, cpu, err := r.loaded(s, func() (outcome, error) {
				return closedLoop(ctx, s.clients, serviceClients, r.scale.span, methodPut, put(uint64(i+1)<<32))
			})
			return map[string]float64{five[3]: micros(cpu, max(1, o.ops)), five[4]: o.perSecond()}, err
		})
	}
}
