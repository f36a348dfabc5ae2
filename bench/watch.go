package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"quorate/bench/lean"
)

// fan is many watchers of one key, on one stream per connection.
type fan struct {
	c        *clients
	calls    []*lean.Call
	watchers int64
	created  atomic.Int64
	got      atomic.Int64  // events
	want     atomic.Int64  // events
	full     chan struct{} // the last expected event has arrived
	errs     chan error
}

var fanKey = []byte("watched")

// openFan creates the watchers and returns when they are active.
func openFan(c *clients, watchers int) (*fan, error) {
	streams := len(c.conns)
	f := &fan{c: c, watchers: int64(watchers / streams * streams), full: make(chan struct{}, 1), errs: make(chan error, 4*streams)}
	create := func(b []byte) []byte { return append(b, watchCreate(fanKey)...) }
	for _, conn := range c.conns {
		x := &lean.Call{OnEnd: func(err error) { f.errs <- fmt.Errorf("a watch has ended: %w", err) }, OnMessage: f.message}
		if err := conn.Start(x, methodWatch, create, false); err != nil {
			f.close()
			return nil, err
		}
		f.calls = append(f.calls, x)
		for range watchers/streams - 1 {
			if err := conn.Send(x, create, false); err != nil {
				f.close()
				return nil, err
			}
		}
	}
	if err := f.wait(time.NewTimer(time.Minute)); err != nil {
		f.close()
		return nil, fmt.Errorf("%d of %d watchers created: %w", f.created.Load(), f.watchers, err)
	}
	return f, nil
}

func (f *fan) message(b []byte) {
	n, created, err := countEvents(b)
	switch {
	case err != nil:
		f.errs <- err
	case created:
		if f.created.Add(1) == f.watchers {
			f.full <- struct{}{}
		}
	case n > 0:
		if now, want := f.got.Add(int64(n)), f.want.Load(); now >= want && now-int64(n) < want {
			f.full <- struct{}{}
		}
	}
}

func (f *fan) wait(late *time.Timer) error {
	select {
	case <-f.full:
		return nil
	case err := <-f.errs:
		return err
	case <-late.C:
		return errors.New("the rest takes too long")
	}
}

// load has one client write the key; each put waits until the last watcher has received the previous one. It
// also returns the number of events.
func (f *fan) load(ctx context.Context, span time.Duration) (outcome, int, error) {
	var o outcome
	value := make([]byte, 256)
	late := time.NewTimer(span + time.Minute)
	defer late.Stop()
	start := time.Now()
	for end := start.Add(span); time.Now().Before(end); o.ops++ {
		f.want.Store(int64(o.ops+1) * f.watchers)
		began := time.Now()
		if err := call(ctx, f.c.conns[0], methodPut, putRequest(nil, fanKey, valueAt(value, uint64(o.ops))), &reply{}); err != nil {
			return o, 0, err
		}
		if err := f.wait(late); err != nil {
			return o, 0, fmt.Errorf("put %d: %d of %d events have come: %w", o.ops, f.got.Load(), f.want.Load(), err)
		}
		o.latencies = append(o.latencies, time.Since(began))
	}
	o.elapsed = time.Since(start)
	slices.Sort(o.latencies)
	return o, int(f.got.Load()), nil
}

func (f *fan) close() {
	for i, x := range f.calls {
		f.c.conns[i].Cancel(x)
	}
}

// fanOut measures a fan on one side.
func (r *run) fanOut(ctx context.Context, s *side) (map[string]float64, error) {
	f, err := openFan(s.clients, r.scale.watchers)
	if err != nil {
		return nil, err
	}
	defer f.close()
	events := 0
	o, cpu, err := r.loaded(s, func() (o outcome, err error) {
		o, events, err = f.load(ctx, r.scale.span)
		return o, err
	})
	return map[string]float64{"watch.cpu": micros(cpu, max(1, events)), "watch.p50": millis(o.percentile(0.5))}, err
}
