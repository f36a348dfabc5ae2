// Package metrics declares all metrics that a member exports, with etcd's names.
//
// In: observations from all packages of the data path. Out: one Prometheus registry,
// served by httpapi. Always true: a metric has the name, type, labels and buckets of etcd 3.7,
// so that alerts and dashboards work unchanged; metrics that etcd does not have start with
// quorate_. Metrics without labels exist, at zero, from the start of the process.
package metrics

import "github.com/prometheus/client_golang/prometheus"

// Registry holds the metrics of this process. All members in the process share it, as in
// etcd.
var Registry = prometheus.NewRegistry()

func newGauge(name, help string) prometheus.Gauge {
	m := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	Registry.MustRegister(m)
	return m
}

func newGaugeVec(name, help string, labels ...string) *prometheus.GaugeVec {
	m := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	Registry.MustRegister(m)
	return m
}

func newCounter(name, help string) prometheus.Counter {
	m := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	Registry.MustRegister(m)
	return m
}

func newCounterVec(name, help string, labels ...string) *prometheus.CounterVec {
	m := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	Registry.MustRegister(m)
	return m
}

func newHistogram(name, help string, buckets []float64) prometheus.Histogram {
	m := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	Registry.MustRegister(m)
	return m
}

func newHistogramVec(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	m := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	Registry.MustRegister(m)
	return m
}
