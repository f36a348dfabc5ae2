package observe

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// alerts are the conditions of published alerts for etcd, in Prometheus' language and without their thresholds.
// What they name must exist on a server, with these labels.
var alerts = []struct{ name, expr string }{
	{"etcdMembersDown", `sum without (To) (rate(etcd_network_peer_sent_failures_total{To="*"}[120s])) > 0.01`},
	{"etcdNoLeader", `etcd_server_has_leader == 0`},
	{"etcdHighNumberOfLeaderChanges", `increase(etcd_server_leader_changes_seen_total[15m]) >= 4`},
	{"etcdHighNumberOfFailedGRPCRequests", `sum without (grpc_type, grpc_code) (rate(grpc_server_handled_total{grpc_code=~"Unknown|FailedPrecondition|ResourceExhausted|Internal|Unavailable|DataLoss|DeadlineExceeded",grpc_service="*",grpc_method="*"}[5m])) / sum without (grpc_type, grpc_code) (rate(grpc_server_handled_total[5m])) > 0.05`},
	{"etcdGRPCRequestsSlow", `histogram_quantile(0.99, sum without (grpc_type) (rate(grpc_server_handling_seconds_bucket{grpc_type="unary",grpc_method!="Defragment",grpc_service="*"}[5m]))) > 0.15`},
	{"etcdMemberCommunicationSlow", `histogram_quantile(0.99, rate(etcd_network_peer_round_trip_time_seconds_bucket{To="*"}[5m])) > 0.15`},
	{"etcdHighNumberOfFailedProposals", `rate(etcd_server_proposals_failed_total[15m]) > 5`},
	{"etcdHighFsyncDurations", `histogram_quantile(0.99, rate(etcd_disk_wal_fsync_duration_seconds_bucket[5m])) > 0.5`},
	{"etcdHighCommitDurations", `histogram_quantile(0.99, rate(etcd_disk_backend_commit_duration_seconds_bucket[5m])) > 0.25`},
	{"etcdDatabaseQuotaLowSpace", `last_over_time(etcd_mvcc_db_total_size_in_bytes[5m]) / last_over_time(etcd_server_quota_backend_bytes[5m]) * 100 > 95`},
	{"etcdExcessiveDatabaseGrowth", `predict_linear(etcd_mvcc_db_total_size_in_bytes[4h], 14400) > etcd_server_quota_backend_bytes`},
	{"etcdDatabaseHighFragmentationRatio", `last_over_time(etcd_mvcc_db_total_size_in_use_in_bytes[5m]) / last_over_time(etcd_mvcc_db_total_size_in_bytes[5m]) < 0.5 and etcd_mvcc_db_total_size_in_use_in_bytes > 104857600`},

	{"dashboard: up", `sum(etcd_server_has_leader)`},
	{"dashboard: RPC rate", `sum(rate(grpc_server_started_total{grpc_type="unary"}[5m]))`},
	{"dashboard: active streams", `sum(grpc_server_started_total{grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}) - sum(grpc_server_handled_total{grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"})`},
	{"dashboard: client traffic", `rate(etcd_network_client_grpc_received_bytes_total[5m]) + rate(etcd_network_client_grpc_sent_bytes_total[5m])`},
	{"dashboard: peer traffic", `sum(rate(etcd_network_peer_received_bytes_total{From="*"}[5m])) + sum(rate(etcd_network_peer_sent_bytes_total{To="*"}[5m]))`},
	{"dashboard: proposals", `etcd_server_proposals_pending + rate(etcd_server_proposals_committed_total[5m]) - rate(etcd_server_proposals_applied_total[5m])`},
	{"dashboard: memory, versions", `process_resident_memory_bytes * etcd_server_version{server_version="*"} * etcd_cluster_version{cluster_version="*"}`},
	{"dashboard: snapshots, slow applies", `etcd_server_slow_apply_total + etcd_server_slow_read_indexes_total + etcd_server_heartbeat_send_failures_total + etcd_snap_db_save_total_duration_seconds_bucket`},
}

var (
	selector  = regexp.MustCompile(`\b((?:etcd|grpc|process)_[a-z_]+)\b(\{[^}]*\})?`)
	labelName = regexp.MustCompile(`([a-zA-Z_]+)\s*(?:=~|!~|!=|=)`)
	grouping  = regexp.MustCompile(`(?:without|by) \([^)]*\)`)
)

// lacking lists what the expression names and the server does not have.
func lacking(expr string, s scrape) (gaps []string) {
	for _, m := range selector.FindAllStringSubmatch(grouping.ReplaceAllString(expr, ""), -1) {
		name := m[1]
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if base := strings.TrimSuffix(name, suffix); base != name && s[base] != nil && s[base].kind == "histogram" {
				name = base
			}
		}
		f := s[name]
		if f == nil || len(f.samples) == 0 {
			gaps = append(gaps, name)
			continue
		}
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(f.labelNames(), l[1]) {
				gaps = append(gaps, name+" by "+l[1])
			}
		}
	}
	return gaps
}

// checkAlerts stops one follower, so that the series of failures appear, and checks that the leader has what the
// alerts use.
func checkAlerts(t *testing.T, o *observed) {
	t.Helper()
	lost := o.cluster.Members[(o.leader+1)%len(o.cluster.Members)]
	if err := lost.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		s, err := fetchMetrics(ctx, o.cluster.Members[o.leader].ClientURL())
		if err != nil {
			t.Fatal(err)
		}
		var gaps []string
		for _, a := range alerts {
			for _, g := range lacking(a.expr, s) {
				gaps = append(gaps, a.name+" lacks "+g)
			}
		}
		if len(gaps) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the leader of %s does not have what alerts are made of:\n%s", lost.Binary(), strings.Join(gaps, "\n"))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestLacking(t *testing.T) {
	s, err := parseExposition(strings.NewReader("# TYPE etcd_a histogram\netcd_a_bucket{To=\"x\",le=\"1\"} 1\netcd_a_sum{To=\"x\"} 1\netcd_a_count{To=\"x\"} 1\n# TYPE etcd_b gauge\netcd_b 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	for expr, want := range map[string]string{
		`rate(etcd_a_bucket{To="*"}[5m]) > etcd_b`:      "",
		`sum without (To, Missing) (etcd_a_bucket) > 1`: "",
		`etcd_a_bucket{From="*"} + etcd_c{To=~"1|2"}`:   "etcd_a by From,etcd_c",
	} {
		if got := strings.Join(lacking(expr, s), ","); got != want {
			t.Errorf("%s: got %q, want %q", expr, got, want)
		}
	}
}

// TestUnsafeNoFsync checks that the flag does what its name says.
func TestUnsafeNoFsync(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args  []string
		syncs bool
	}{{nil, true}, {[]string{"--unsafe-no-fsync"}, false}} {
		members, _ := single(t, tt.args...)
		for i, m := range members {
			const synced = "etcd_disk_wal_fsync_duration_seconds_count"
			before, err := fetchMetrics(t.Context(), m.ClientURL()) // real etcd syncs a new log regardless of the flag
			if err != nil {
				t.Fatal(err)
			}
			c, err := dial(m.ClientAddr())
			if err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if _, err := c.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); err != nil {
					t.Fatal(err)
				}
			}
			c.close()
			after, err := fetchMetrics(t.Context(), m.ClientURL())
			if err != nil {
				t.Fatal(err)
			}
			if n := after.values()[synced] - before.values()[synced]; n > 0 != tt.syncs {
				t.Errorf("server %c with %q has synced its log %v times", 'a'+i, tt.args, n)
			}
		}
	}
}
