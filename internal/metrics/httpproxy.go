package metrics

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the v2 proxy. They have values once it forwards a request.
var (
	ProxyRequestsTotal           = newCounterVec("etcd_proxy_requests_total", "Requests that came to the proxy", "method")
	ProxyHandledTotal            = newCounterVec("etcd_proxy_handled_total", "Requests that the proxy has answered", "method", "code")
	ProxyDroppedTotal            = newCounterVec("etcd_proxy_dropped_total", "Requests, or attempts of one, that did not get through", "method", "proxying_error")
	ProxyHandlingDurationSeconds = newHistogramVec("etcd_proxy_handling_duration_seconds", "Time from a request to the end of its answer",
		prometheus.ExponentialBuckets(0.0005, 2, 13), "method")
)
