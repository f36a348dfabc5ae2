package metrics

import "github.com/prometheus/client_golang/prometheus"

// Metrics of client and peer traffic.
var (
	NetworkActivePeers                         = newGaugeVec("etcd_network_active_peers", "1 per active peer stream", "Local", "Remote")
	NetworkClientGRPCReceivedBytesTotal        = newCounter("etcd_network_client_grpc_received_bytes_total", "Bytes from gRPC clients")
	NetworkClientGRPCSentBytesTotal            = newCounter("etcd_network_client_grpc_sent_bytes_total", "Bytes to gRPC clients")
	NetworkDisconnectedPeersTotal              = newCounterVec("etcd_network_disconnected_peers_total", "Peer disconnections", "Local", "Remote")
	NetworkKnownPeers                          = newGaugeVec("etcd_network_known_peers", "1 per known member (0 after removal)", "Local", "Remote")
	NetworkPeerReceivedBytesTotal              = newCounterVec("etcd_network_peer_received_bytes_total", "Bytes from a peer", "From")
	NetworkPeerReceivedFailuresTotal           = newCounterVec("etcd_network_peer_received_failures_total", "Failed receives from a peer", "From")
	NetworkPeerRoundTripTimeSeconds            = newHistogramVec("etcd_network_peer_round_trip_time_seconds", "Peer RTT from probing", prometheus.ExponentialBuckets(0.0001, 2, 16), "To")
	NetworkPeerSentBytesTotal                  = newCounterVec("etcd_network_peer_sent_bytes_total", "Bytes to a peer", "To")
	NetworkPeerSentFailuresTotal               = newCounterVec("etcd_network_peer_sent_failures_total", "Failed sends to a peer", "To")
	NetworkServerStreamFailuresTotal           = newCounterVec("etcd_network_server_stream_failures_total", "Failed server streams (Type receive/send, API watch, lease-keepalive)", "Type", "API")
	NetworkSnapshotReceiveFailures             = newCounterVec("etcd_network_snapshot_receive_failures", "Failed snapshot receives", "From")
	NetworkSnapshotReceiveInflightsTotal       = newGaugeVec("etcd_network_snapshot_receive_inflights_total", "Snapshots being received", "From")
	NetworkSnapshotReceiveSuccess              = newCounterVec("etcd_network_snapshot_receive_success", "Snapshots received", "From")
	NetworkSnapshotReceiveTotalDurationSeconds = newHistogramVec("etcd_network_snapshot_receive_total_duration_seconds", "Snapshot receive time", prometheus.ExponentialBuckets(0.1, 2, 10), "From")
	NetworkSnapshotSendFailures                = newCounterVec("etcd_network_snapshot_send_failures", "Failed snapshot sends", "To")
	NetworkSnapshotSendInflightsTotal          = newGaugeVec("etcd_network_snapshot_send_inflights_total", "Snapshots being sent", "To")
	NetworkSnapshotSendSuccess                 = newCounterVec("etcd_network_snapshot_send_success", "Snapshots sent", "To")
	NetworkSnapshotSendTotalDurationSeconds    = newHistogramVec("etcd_network_snapshot_send_total_duration_seconds", "Snapshot send time", prometheus.ExponentialBuckets(0.1, 2, 10), "To")
)
