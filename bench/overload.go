package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"quorate/bench/lean"
)

// overloadFactor is the load as a multiple of the clients that saturate a cluster.
const overloadFactor = 10

// refusedPause is the pause of a client after "too many requests", as in client libraries.
const refusedPause = 20 * time.Millisecond

// overload measures the goodput of the clients that saturate the cluster, then of ten times as many, and checks
// what must go on meanwhile: leadership, health answers, memory.
func (r *run) overload(ctx context.Context, s *side) (map[string]float64, error) {
	usual, err := r.puts(ctx, s, r.scale.clients, r.scale.span/2)
	if err != nil {
		return nil, err
	}
	before, err := terms(ctx, s)
	if err != nil {
		return nil, err
	}
	for _, m := range s.cluster.Members {
		if err := m.ResetPeak(); err != nil {
			return nil, err
		}
	}
	health := watchHealth(ctx, s)
	many, err := r.crowd(ctx, s, overloadFactor*r.scale.clients, r.scale.span)
	slowest, herr := health()
	if err := errors.Join(err, herr); err != nil {
		return nil, err
	}
	after, err := terms(ctx, s)
	if err != nil {
		return nil, err
	}
	var peak int64
	for _, m := range s.cluster.Members {
		mem, err := m.Memory()
		if err != nil {
			return nil, err
		}
		peak = max(peak, int64(mem.Peak))
	}
	return map[string]float64{"overload.goodput": many.perSecond() / usual.perSecond(), "overload.rate": many.perSecond(),
		"overload.leaders": 1 + float64(after-before), "overload.health": millis(slowest), "overload.peak": megabytes(peak)}, nil
}

// crowd is puts by n clients; only acknowledged ones count, and refused ones are retried after a pause.
func (r *run) crowd(ctx context.Context, s *side, n int, d time.Duration) (outcome, error) {
	l := &loop{method: methodPut, request: putAt, refused: func(err error) (time.Duration, bool) {
		var st *lean.Status
		return refusedPause, errors.As(err, &st) && st.Message == "etcdserver: too many requests"
	}}
	return l.run(ctx, s.clients, n, d)
}

// watchHealth requests the health of every member, over HTTP, ten times a second. The returned function stops
// that and returns the 99th percentile of the response times.
func watchHealth(ctx context.Context, s *side) func() (time.Duration, error) {
	stop := make(chan struct{})
	var (
		wg        sync.WaitGroup
		mu        sync.Mutex
		latencies []time.Duration
		failed    error
	)
	client := &http.Client{Timeout: 30 * time.Second}
	for _, m := range s.cluster.Members {
		wg.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				began := time.Now()
				resp, err := client.Get(m.ClientURL() + "/health")
				if err == nil {
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						err = fmt.Errorf("health of %s: %s", m.Name(), resp.Status)
					}
				}
				mu.Lock()
				latencies = append(latencies, time.Since(began))
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	return func() (time.Duration, error) {
		close(stop)
		wg.Wait()
		client.CloseIdleConnections()
		slices.Sort(latencies)
		return outcome{latencies: latencies}.percentile(0.99), failed
	}
}

// terms is the term of the cluster: it grows with each election.
func terms(ctx context.Context, s *side) (int64, error) {
	r := &reply{keep: true}
	if err := call(ctx, s.clients.conns[0], methodStatus, nil, r); err != nil {
		return 0, err
	}
	return intField(r.body, 6) // StatusResponse.raftTerm
}
