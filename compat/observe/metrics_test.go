package observe

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"quorate/compat/harness"
)

// The lane's binaries, relative to this folder: what the make targets build.
var (
	flagA = flag.String("a", "../bin/etcd37", "reference server binary")
	flagB = flag.String("b", "../../bin/etcd", "server binary under test")
)

const limit = 60 * time.Second // for every wait on a server

var web = &http.Client{
	Timeout:       20 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func fetchMetrics(ctx context.Context, base string) (scrape, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics: %s", resp.Status)
	}
	return parseExposition(resp.Body)
}

// observed is one cluster of three before and after load on its leader.
type observed struct {
	cluster       *harness.Cluster
	leader        int
	before, after []scrape // leader first, then the followers in member order
	held          []scrape // with the watchers of the load open
}

// bothBinaries checks that the servers are built.
func bothBinaries(t *testing.T) [2]string {
	t.Helper()
	for _, p := range []string{*flagA, *flagB} {
		if _, err := os.Stat(p); err != nil {
			t.Fatalf("server binary: %v (build both first: make build compat/bin/etcd37)", err)
		}
	}
	return [2]string{*flagA, *flagB}
}

// scrapes waits until all members have applied the same index and scrapes them: leader first, then the others.
func (o *observed) scrapes(ctx context.Context) ([]scrape, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var all []scrape
		applied := map[float64]bool{}
		for i := range o.cluster.Members {
			m := o.cluster.Members[(o.leader+i)%len(o.cluster.Members)]
			s, err := fetchMetrics(ctx, m.ClientURL())
			if err != nil {
				return nil, err
			}
			all = append(all, s)
			applied[s.values()["etcd_server_proposals_applied_total"]] = true
		}
		if len(applied) == 1 {
			return all, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("members did not settle: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// observe starts three members, loads their leader and scrapes all. The cluster keeps running.
func observe(ctx context.Context, binary, dir string) (*observed, error) {
	cluster, err := harness.StartCluster(ctx, dir, []string{binary, binary, binary}, "--metrics=extensive", "--log-level=error")
	if err != nil {
		return nil, err
	}
	o := &observed{cluster: cluster, leader: -1}
	if err := o.fill(ctx); err != nil {
		cluster.Kill()
		return nil, err
	}
	return o, nil
}

func (o *observed) fill(ctx context.Context) error {
	var lead *client
	for i, m := range o.cluster.Members {
		c, err := dial(m.ClientAddr())
		if err != nil {
			return err
		}
		defer c.close()
		if is, err := c.isLeader(ctx); err != nil {
			return err
		} else if is {
			o.leader, lead = i, c
		}
	}
	if lead == nil {
		return fmt.Errorf("no leader")
	}
	var err error
	if o.before, err = o.scrapes(ctx); err != nil {
		return err
	}
	if err := lead.load(ctx); err != nil {
		return err
	}
	if o.held, err = o.scrapes(ctx); err != nil {
		return err
	}
	// The end of the watch reaches its counter shortly after the client has gone.
	lead.endWatch()
	const ended = `grpc_server_handled_total{grpc_code="Canceled",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}`
	const received = `grpc_server_msg_received_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}`
	all := o.before[0].values()[received] + 3 // two watchers, and the end
	for o.after == nil || o.after[0].values()[ended] == 0 || o.after[0].values()[received] < all || o.after[0].values()["etcd_debugging_mvcc_watch_stream_total"] != 0 {
		if o.after, err = o.scrapes(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("end of watch is not counted: %w", ctx.Err())
		}
	}
	return nil
}

func observeBoth(t *testing.T) (a, b *observed) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var got [2]*observed
	var errs [2]error
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i, bin := range bothBinaries(t) {
		wg.Go(func() { got[i], errs[i] = observe(ctx, bin, filepath.Join(dir, string(rune('a'+i)))) })
	}
	wg.Wait()
	for _, o := range got {
		if o != nil {
			t.Cleanup(o.cluster.Kill)
		}
	}
	for i, err := range errs {
		if err != nil {
			t.Fatalf("server %c: %v", 'a'+i, err)
		}
	}
	return got[0], got[1]
}

// compared are the prefixes of the series that are compared; real etcd may export nothing else.
var compared = []string{"etcd_", "grpc_server_", "os_fd_", "process_", "promhttp_", "go_"}

// absent are the series that real etcd exports and the server under test does not. A key that begins with *
// means all series that contain the rest.
var absent = map[string]string{}

// unmoved are series that move in real etcd and need not move here.
var unmoved = map[string]string{
	"etcd_debugging_disk_backend_commit_rebalance_duration_seconds_count": "there are no pages to rebalance",
	"etcd_debugging_disk_backend_commit_spill_duration_seconds_count":     "there are no pages to spill",
	"etcd_mvcc_range_total":                     "etcd reads a key after a compaction to learn the revision, also on a follower; the leader's reads are in the table of moves",
	"etcd_server_slow_apply_total":              "depends on timing",
	"etcd_server_heartbeat_send_failures_total": "depends on timing",
}

// uncounted are series whose increase does not depend on the load alone.
var uncounted = map[string]string{
	`*grpc_server_msg_sent_total{grpc_method="Snapshot"*`: "one message for each 32 KiB of a file that is laid out in another way",
	"*LeaseLeases*":                                              "the load asks until a lease has expired",
	"*etcd_server_client_requests_total*":                        "counts those questions, too",
	"*etcd_disk_*":                                               "how much is written at a time depends on timing",
	"*etcd_debugging_disk_*":                                     "how much is written at a time depends on timing",
	"*etcd_mvcc_db_*":                                            "sizes of different stores",
	"*etcd_debugging_mvcc_db_compaction_last*":                   "a time of day",
	"*etcd_mvcc_range_total*":                                    "etcd reads a key after a compaction to learn the revision",
	"*etcd_server_slow_*":                                        "depends on timing",
	"*etcd_server_heartbeat_send_failures_total*":                "depends on timing",
	"*etcd_server_proposals_*":                                   "a compaction that must fail is refused before the log here, after it there",
	`*etcd_server_apply_duration_seconds_count{op="Compaction"*`: "a compaction that must fail is refused before the log here, after it there",
	"*etcd_server_health*":                                       "the harness waits until servers are ready",
}

// moves are the series that dashboards chart and that this load moves. by is the minimum increase.
var moves = []struct {
	series   string
	by       float64
	follower bool // also on a follower
}{
	{"etcd_server_proposals_committed_total", loadPuts, true},
	{"etcd_server_proposals_applied_total", loadPuts, true},
	{"etcd_disk_wal_fsync_duration_seconds_count", 1, true},
	{"etcd_disk_wal_write_duration_seconds_count", 1, true},
	{"etcd_disk_wal_write_bytes_total", 100 * loadPuts, true},
	{"etcd_disk_backend_commit_duration_seconds_count", 1, true},
	{"etcd_debugging_disk_backend_commit_write_duration_seconds_count", 1, true},
	{"etcd_disk_backend_snapshot_duration_seconds_count", 1, false},
	{"etcd_disk_backend_defrag_duration_seconds_count", 1, false},
	{"etcd_mvcc_put_total", loadPuts + 3, true},
	{"etcd_mvcc_delete_total", 2, true},
	{"etcd_mvcc_txn_total", 1, false},
	{"etcd_mvcc_range_total", 8, false},
	{"etcd_mvcc_hash_duration_seconds_count", 1, false},
	{"etcd_mvcc_hash_rev_duration_seconds_count", 1, false},
	{"etcd_debugging_mvcc_current_revision", loadPuts + 4, true},
	{"etcd_debugging_mvcc_compact_revision", loadPuts, true},
	{"etcd_debugging_mvcc_keys_total", loadPuts - 1, true},
	{"etcd_debugging_mvcc_total_put_size_in_bytes", 100 * loadPuts, true},
	{"etcd_debugging_mvcc_db_compaction_keys_total", 1, true},
	{"etcd_debugging_mvcc_db_compaction_last", 1, true},
	{"etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count", 1, true},
	{"etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_count", 1, true},
	{"etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds_count", 1, true},
	{"etcd_debugging_mvcc_events_total", loadPuts + 6, false},
	{"etcd_debugging_lease_granted_total", 3, true},
	{"etcd_debugging_lease_revoked_total", 2, true},
	{"etcd_debugging_lease_renewed_total", 1, false},
	{"etcd_debugging_lease_ttl_total_count", 3, true},
	{"etcd_debugging_server_lease_expired_total", 1, false},
	{"etcd_network_client_grpc_received_bytes_total", 100 * loadPuts, false},
	{"etcd_network_client_grpc_sent_bytes_total", 1000, false},
	{`etcd_network_peer_sent_bytes_total{To="*"}`, 100, true},
	{`etcd_network_peer_received_bytes_total{From="*"}`, 100, true},
	{`etcd_server_range_duration_seconds_count{success="true"}`, 5, false},
	{`etcd_server_range_duration_seconds_count{success="false"}`, 1, false},
	{`etcd_server_request_duration_seconds_count{success="true",type="Put"}`, loadPuts + 1, false},
	{`etcd_server_apply_duration_seconds_count{op="Put",success="true",version="v3"}`, loadPuts + 1, true},
	{`etcd_server_client_requests_total{client_api_version="3.7",type="stream"}`, 3, false},
}

// levels are the values of gauges on leader and follower while the load's two watchers are open.
var levels = []struct {
	series           string
	leader, follower func(float64) bool
}{
	{"etcd_server_has_leader", is(1), is(1)},
	{"etcd_server_is_leader", is(1), is(0)},
	{"etcd_server_is_learner", is(0), is(0)},
	{"etcd_server_leader_changes_seen_total", atLeast(1), atLeast(1)},
	{"etcd_server_proposals_pending", is(0), is(0)},
	{"etcd_server_proposals_failed_total", is(0), is(0)},
	{"etcd_server_quota_backend_bytes", is(2 << 30), is(2 << 30)},
	{"etcd_server_slow_apply_total", atLeast(0), atLeast(0)},
	{`etcd_server_id{server_id="*"}`, is(1), is(1)},
	{`etcd_server_version{server_version="3.7.3"}`, is(1), is(1)},
	{`etcd_cluster_version{cluster_version="3.7"}`, is(1), is(1)},
	{"etcd_mvcc_db_total_size_in_bytes", atLeast(1), atLeast(1)},
	{"etcd_mvcc_db_total_size_in_use_in_bytes", atLeast(1), atLeast(1)},
	{"etcd_debugging_mvcc_watch_stream_total", is(1), is(0)},
	{"etcd_debugging_mvcc_watcher_total", is(2), is(0)},
	{"etcd_debugging_mvcc_slow_watcher_total", is(0), is(0)},
	{"etcd_debugging_mvcc_pending_events_total", is(0), is(0)},
	{`etcd_network_active_peers{Local="*",Remote="*"}`, atLeast(2), atLeast(2)},
	{`etcd_network_known_peers{Local="*",Remote="*"}`, is(3), is(3)},
	{"os_fd_limit", atLeast(100), atLeast(100)},
	{"os_fd_used", atLeast(10), atLeast(10)},
	{"process_resident_memory_bytes", atLeast(1 << 20), atLeast(1 << 20)},
	{"process_open_fds", atLeast(10), atLeast(10)},
}

func is(want float64) func(float64) bool      { return func(v float64) bool { return v == want } }
func atLeast(want float64) func(float64) bool { return func(v float64) bool { return v >= want } }

// late are series that real etcd exports only some seconds after the start.
var late = map[string]string{
	`etcd_network_peer_round_trip_time_seconds_count{To="*"}`: "comes with the first probe",
}

// charted are the series of the alerts and dashboards that etcd publishes, with labels. All must exist before
// the first request.
var charted = []string{
	"etcd_server_has_leader", // etcdNoLeader, Up
	"etcd_server_leader_changes_seen_total",
	`grpc_server_handled_total{grpc_code="Unavailable",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}`,
	`grpc_server_handled_total{grpc_code="Unknown",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"}`,
	`grpc_server_handled_total{grpc_code="OK",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}`,
	`grpc_server_handled_total{grpc_code="OK",grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"}`,
	`grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}`,
	`grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}`,
	`grpc_server_started_total{grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"}`,
	`grpc_server_handling_seconds_count{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}`, // etcdGRPCRequestsSlow
	`etcd_network_peer_round_trip_time_seconds_count{To="*"}`,                                                // etcdMemberCommunicationSlow
	`etcd_network_peer_sent_bytes_total{To="*"}`,
	`etcd_network_peer_received_bytes_total{From="*"}`,
	"etcd_network_client_grpc_received_bytes_total",
	"etcd_network_client_grpc_sent_bytes_total",
	"etcd_server_proposals_failed_total",
	"etcd_server_proposals_pending",
	"etcd_server_proposals_committed_total",
	"etcd_server_proposals_applied_total",
	"etcd_disk_wal_fsync_duration_seconds_count",
	"etcd_disk_backend_commit_duration_seconds_count",
	"etcd_mvcc_db_total_size_in_bytes",
	"etcd_mvcc_db_total_size_in_use_in_bytes",
	"etcd_server_quota_backend_bytes",
	"process_resident_memory_bytes",
}

func excepted(table map[string]string, key string) bool {
	if table[key] != "" {
		return true
	}
	for pattern := range table {
		if part, ok := strings.CutPrefix(pattern, "*"); ok && strings.Contains(key, strings.TrimSuffix(part, "*")) {
			return true
		}
	}
	return false
}

func missing(want, got []string) []string {
	return slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(got, s) })
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	a, b := observeBoth(t)
	role := func(i int) string { return [...]string{"leader", "follower", "follower"}[i] }

	t.Run("families", func(t *testing.T) {
		for i := range 2 {
			for _, name := range sortedKeys(a.after[i]) {
				fa, fb := a.after[i][name], b.after[i][name]
				if !slices.ContainsFunc(compared, func(p string) bool { return strings.HasPrefix(name, p) }) {
					t.Errorf("real etcd exports %s, which is not in the prefixes that are compared", name)
				}
				if fb == nil {
					if !excepted(absent, name) {
						t.Errorf("%s: %s %s is missing", role(i), fa.kind, name)
					}
					continue
				}
				if fa.kind != fb.kind {
					t.Errorf("%s: %s: got type %s, want %s", role(i), name, fb.kind, fa.kind)
				}
				if g, w := fb.labelNames(), fa.labelNames(); !slices.Equal(g, w) {
					t.Errorf("%s: %s: got labels %v, want %v", role(i), name, g, w)
				}
				if g, w := fb.bounds(), fa.bounds(); !slices.Equal(g, w) {
					t.Errorf("%s: %s: got bounds %v, want %v", role(i), name, g, w)
				}
			}
		}
	})

	t.Run("series", func(t *testing.T) {
		for i := range 2 {
			got := sortedKeys(b.after[i].values())
			for _, key := range missing(sortedKeys(a.after[i].values()), got) {
				if !excepted(absent, key) {
					t.Errorf("%s: %s is missing", role(i), key)
				}
			}
		}
	})

	t.Run("moves", func(t *testing.T) {
		for i := range 2 {
			a0, a1, b0, b1 := a.before[i].values(), a.after[i].values(), b.before[i].values(), b.after[i].values()
			for _, key := range sortedKeys(a1) {
				if _, ok := b1[key]; ok && strings.HasPrefix(key, "etcd_") && a1[key] > a0[key] && b1[key] <= b0[key] && !excepted(unmoved, key) {
					t.Errorf("%s: %s went from %v to %v in real etcd, here from %v to %v", role(i), key, a0[key], a1[key], b0[key], b1[key])
				}
			}
		}
	})

	t.Run("counts", func(t *testing.T) {
		for i := range 2 {
			a0, a1, b0, b1 := a.before[i].values(), a.after[i].values(), b.before[i].values(), b.after[i].values()
			for _, key := range sortedKeys(a1) {
				if !counted(key) || excepted(absent, key) || excepted(unmoved, key) || excepted(uncounted, key) {
					continue
				}
				if g, w := b1[key]-b0[key], a1[key]-a0[key]; g != w {
					t.Errorf("%s: %s: went up by %v, want %v", role(i), key, g, w)
				}
			}
		}
	})

	for _, o := range []struct {
		name string
		*observed
	}{{"real etcd", a}, {"server under test", b}} {
		t.Run(o.name, func(t *testing.T) {
			for i := range 2 {
				before, after := o.before[i].values(), o.after[i].values()
				for _, key := range charted {
					if _, ok := before[key]; !ok && !(o.observed == a && excepted(late, key)) {
						t.Errorf("%s: %s is missing before the load", role(i), key)
					}
				}
				for _, m := range moves {
					if d := after[m.series] - before[m.series]; (i == 0 || m.follower) && d < m.by {
						t.Errorf("%s: %s: went up by %v, want at least %v", role(i), m.series, d, m.by)
					}
				}
				for _, l := range levels {
					good := l.leader
					if i > 0 {
						good = l.follower
					}
					if v, ok := o.held[i].values()[l.series]; !ok || !good(v) {
						t.Errorf("%s: %s: got %v (exported: %v)", role(i), l.series, v, ok)
					}
				}
			}
			checkAlerts(t, o.observed)
		})
	}
}

// counted reports whether a series is compared by its increase.
func counted(key string) bool {
	for _, p := range []string{"grpc_server_", "etcd_mvcc_", "etcd_debugging_", "etcd_server_", "etcd_snap_"} {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}
