package ctl

import (
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"quorate/internal/clock"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// verdict is one line of a check's result.
type verdict struct {
	ok   bool
	text string
}

// loadStats are the measurements of a load.
type loadStats struct {
	took      []time.Duration // durations of the successful writes
	slowest   time.Duration
	total     time.Duration  // from the first write to the end of the last
	errorText map[string]int // number of occurrences of each error
}

// runLoad has each client write, one operation at a time, what ops yields; done, if not
// nil, is called after each write, from several goroutines.
func runLoad(clients []*clientv3.Client, done func(), ops iter.Seq[clientv3.Op]) *loadStats {
	type result struct {
		took time.Duration
		err  error
	}
	work := make(chan clientv3.Op, len(clients))
	results := make(chan result, len(clients))
	start := clock.Now()
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			for op := range work {
				// Bounded, because a write to a cluster that dies during the check would
				// block forever.
				ctx, cancel := context.WithTimeout(context.Background(), checkWriteLimit)
				began := clock.Now()
				_, err := c.Do(ctx, op)
				results <- result{clock.Since(began), err}
				cancel()
				if done != nil {
					done()
				}
			}
		})
	}
	go func() {
		for op := range ops {
			work <- op
		}
		close(work)
		wg.Wait()
		close(results)
	}()

	st := &loadStats{errorText: map[string]int{}}
	for r := range results {
		if r.err != nil {
			st.errorText[r.err.Error()]++
			continue
		}
		st.took = append(st.took, r.took)
		st.slowest = max(st.slowest, r.took)
	}
	st.total = clock.Since(start)
	return st
}

// perSecond returns the number of successful writes per second.
func (st *loadStats) perSecond() float64 { return float64(len(st.took)) / st.total.Seconds() }

// stddev returns the standard deviation of the write durations, in seconds.
func (st *loadStats) stddev() float64 {
	var sum, squares float64
	for _, t := range st.took {
		sum += t.Seconds()
	}
	mean := sum / float64(len(st.took))
	for _, t := range st.took {
		squares += (t.Seconds() - mean) * (t.Seconds() - mean)
	}
	return math.Sqrt(squares / float64(len(st.took)))
}

// errorVerdicts returns a line for each kind of error, sorted; none if there were no
// errors.
func (st *loadStats) errorVerdicts() []verdict {
	if len(st.errorText) == 0 {
		return nil
	}
	v := []verdict{{text: "FAIL: too many errors"}}
	for _, text := range slices.Sorted(maps.Keys(st.errorText)) {
		v = append(v, verdict{text: fmt.Sprintf("FAIL: ERROR(%v) -> %d", text, st.errorText[text])})
	}
	return v
}

// residentMemory returns the resident memory, in bytes, of the server at an endpoint. The
// scheme of the URL is the endpoint's, http:// if it has none.
func (s checker) residentMemory(endpoint string) (float64, error) {
	cfg, err := s.config(endpoint)
	if err != nil {
		return 0, err
	}
	url := endpoint
	if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
		url = "http://" + url
	}
	url += "/metrics"
	client := &http.Client{
		Timeout:   checkCleanupLimit,
		Transport: &http.Transport{TLSClientConfig: cfg.TLS, DisableKeepAlives: true},
	}
	r, err := client.Get(url)
	if err != nil {
		return 0, fmt.Errorf("fetch error: %w", err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxMetrics))
	if err != nil {
		return 0, fmt.Errorf("fetch error: reading %s: %w", url, err)
	}
	return metric(string(body), "process_resident_memory_bytes")
}

// maxMetrics bounds the bytes read from a server's metrics.
const maxMetrics = 64 << 20

// metric finds a metric without labels in the text format of Prometheus.
func metric(text, name string) (float64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				return 0, fmt.Errorf("parse error: %w", err)
			}
			return v, nil
		}
	}
	return 0, fmt.Errorf("could not find: %s", name)
}
