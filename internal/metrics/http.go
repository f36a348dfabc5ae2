package metrics

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the v2 API, with the names of etcd 3.5. They have values once the API is used.
var (
	HTTPReceivedTotal             = newCounterVec("etcd_http_received_total", "Requests to the v2 API that were understood and allowed, without watches.", "method")
	HTTPFailedTotal               = newCounterVec("etcd_http_failed_total", "Requests to the v2 API that failed after that, by status.", "method", "code")
	HTTPSuccessfulDurationSeconds = newHistogramVec("etcd_http_successful_duration_seconds", "Duration of requests to the v2 API that succeeded, without watches.",
		prometheus.ExponentialBuckets(0.0005, 2, 13), "method")
)
