package server

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"quorate/internal/metrics"
)

var rangeObservers = [2]interface{ Observe(float64) }{
	metrics.ServerRangeDurationSeconds.WithLabelValues("false"),
	metrics.ServerRangeDurationSeconds.WithLabelValues("true"),
}

func observeRange(ok bool, d time.Duration) { rangeObservers[boolIndex(ok)].Observe(d.Seconds()) }

func boolIndex(ok bool) int {
	if ok {
		return 1
	}
	return 0
}

// Kinds of requests in etcd_server_request_duration_seconds in addition to those of
// [command.Op].
const (
	requestRange   = "Range"
	requestReadTxn = "ReadonlyTxn"
)

// requestObservers holds the two series (failed, succeeded) of each kind of request,
// created when the first request of the kind completes.
var requestObservers sync.Map // string → *[2]prometheus.Observer

func observeRequest(kind string, ok bool, d time.Duration) {
	o, found := requestObservers.Load(kind)
	if !found {
		o, _ = requestObservers.LoadOrStore(kind, &[2]prometheus.Observer{
			metrics.ServerRequestDurationSeconds.WithLabelValues(kind, "false"),
			metrics.ServerRequestDurationSeconds.WithLabelValues(kind, "true"),
		})
	}
	o.(*[2]prometheus.Observer)[boolIndex(ok)].Observe(d.Seconds())
}
