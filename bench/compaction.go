package main

import (
	"context"
	"errors"
	"time"
)

const (
	pacedRate = 400 // puts per second: a light load, so that waiting shows and queueing does not
	pacedKeys = 1000
)

// compacted is the duration of a compaction and its effect on concurrent puts.
type compacted struct {
	took, cpu  time.Duration
	quiet, put time.Duration // p99 before and meanwhile
	ratio      float64       // of the two
}

// compact compacts everything, with paced puts before and meanwhile.
func (r *run) compact(ctx context.Context, s *side) (c compacted, err error) {
	p := startPacer(s.clients, pacedRate, pacedKeys)
	t := time.NewTimer(r.scale.span)
	<-t.C
	quiet, err := p.finish()
	if err != nil {
		return c, err
	}
	rev, err := revision(ctx, s.clients)
	if err != nil {
		return c, err
	}
	before, err := s.cpu()
	if err != nil {
		return c, err
	}
	p = startPacer(s.clients, pacedRate, pacedKeys)
	began := time.Now()
	cerr := call(ctx, s.clients.conns[1], methodCompact, compactRequest(rev), &reply{})
	c.took = time.Since(began)
	during, err := p.finish()
	if err := errors.Join(cerr, err); err != nil {
		return c, err
	}
	after, err := s.cpu()
	c.cpu, c.quiet, c.put = after-before, quiet.percentile(0.99), during.percentile(0.99)
	c.ratio = float64(c.put) / float64(c.quiet)
	return c, err
}

var compactionRows = []string{"compaction.p99", "compaction.put", "compaction.time", "compaction.cpu"}

// compactions compacts a store repeatedly, each time after all of its keys have been rewritten.
func (r *run) compactions(ctx context.Context) {
	const times = 5
	r.step(ctx, compactionRows, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		return nil, preload(ctx, s.clients, "big", 0, r.scale.listKeys, 256, 0)
	})
	seed := uint64(0)
	r.step(ctx, compactionRows, times, func(ctx context.Context, s *side) (map[string]float64, error) {
		seed++
		if err := preload(ctx, s.clients, "big", 0, r.scale.listKeys, 256, seed<<32); err != nil {
			return nil, err
		}
		if _, err := residentAfter(ctx, s); err != nil { // idle
			return nil, err
		}
		c, err := r.compact(ctx, s)
		return map[string]float64{"compaction.p99": c.ratio, "compaction.put": millis(c.put),
			"compaction.time": c.took.Seconds(), "compaction.cpu": c.cpu.Seconds()}, err
	})
}
