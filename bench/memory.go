package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"quorate/bench/lean"
)

var memoryRows = []string{"memory.conn", "memory.watch"}

const (
	idleConns   = 10_000
	idleWatches = 10_000
	watchConns  = 100
	// spareFiles is the number of file descriptors that a process needs in addition to its connections; etcd
	// reserves 150 for itself.
	spareFiles = 500
)

// memory measures the cost of idle clients.
func (r *run) memory(ctx context.Context) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		r.fail(memoryRows, err)
		return
	}
	r.log("  the limit on open files is %d for this process and for each server", limit.Cur)
	if limit.Cur < idleConns+spareFiles {
		r.fail(memoryRows[:1], fmt.Errorf("the limit on open files, %d, does not allow %d connections", limit.Cur, idleConns))
	} else {
		r.step(ctx, memoryRows[:1], r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
			v, err := r.grown(ctx, s, idleConns, idleConns, func(ctx context.Context, c *clients) error {
				for _, conn := range c.conns { // each has been used
					if err := call(ctx, conn, methodRange, rangeRequest(nil, []byte("any"), rangeOptions{serializable: true}), &reply{}); err != nil {
						return err
					}
				}
				return nil
			})
			return map[string]float64{"memory.conn": v}, err
		})
	}
	r.step(ctx, memoryRows[1:], r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
		v, err := r.grown(ctx, s, watchConns, idleWatches, openWatches)
		return map[string]float64{"memory.watch": v}, err
	})
}

// grown restarts the member and returns its growth, in KB for each of n, after open has run on that many
// connections.
func (r *run) grown(ctx context.Context, s *side, conns, n int, open func(ctx context.Context, c *clients) error) (float64, error) {
	if _, err := r.restart(ctx, s, true); err != nil {
		return 0, err
	}
	if _, err := revision(ctx, s.clients); err != nil {
		return 0, err
	}
	before, err := residentAfter(ctx, s)
	if err != nil {
		return 0, err
	}
	c, err := dial(ctx, s.addrs(), conns, lean.Options{})
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := open(ctx, c); err != nil {
		return 0, err
	}
	after, err := residentAfter(ctx, s)
	return (after - before) * 1e3 / float64(n), err
}

// openWatches opens the watch streams, each with a watcher of its own key.
func openWatches(ctx context.Context, c *clients) error {
	created, errs := make(chan struct{}, idleWatches), make(chan error, idleWatches)
	for i := range idleWatches {
		var key [keySize]byte
		create := watchCreate(keyAt(key[:], "idle", i))
		x := &lean.Call{OnMessage: func([]byte) { created <- struct{}{} }, OnEnd: func(err error) { errs <- err }}
		if err := c.conns[i%len(c.conns)].Start(x, methodWatch, func(b []byte) []byte { return append(b, create...) }, false); err != nil {
			return err
		}
	}
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for i := range idleWatches {
		select {
		case <-created:
		case err := <-errs:
			return fmt.Errorf("a watch has ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return fmt.Errorf("%d of %d watches are there after a minute", i, idleWatches)
		}
	}
	return nil
}
