package metrics

// Metrics of the gRPC proxy. A member exports them too, at zero, because the proxy is part of
// the same program.
var (
	GRPCProxyCacheHitsTotal          = newGauge("etcd_grpc_proxy_cache_hits_total", "Answers of the proxy out of its cache")
	GRPCProxyCacheKeysTotal          = newGauge("etcd_grpc_proxy_cache_keys_total", "Ranges in the cache of the proxy")
	GRPCProxyCacheMissesTotal        = newGauge("etcd_grpc_proxy_cache_misses_total", "Reads of the proxy past its cache")
	GRPCProxyEventsCoalescingTotal   = newCounter("etcd_grpc_proxy_events_coalescing_total", "Events that the proxy sent to shared watchers")
	GRPCProxyWatchersCoalescingTotal = newGauge("etcd_grpc_proxy_watchers_coalescing_total", "Watchers that the proxy shares")
)
