package apply

import (
	"github.com/prometheus/client_golang/prometheus"

	"quorate/internal/metrics"
)

// observers holds the two series (failed, succeeded) of each operation, looked
// up once.
var observers = func() map[string]*[2]prometheus.Observer {
	m := make(map[string]*[2]prometheus.Observer)
	for _, op := range []string{"Put", "Txn", "DeleteRange", "Compaction", "LeaseGrant", "LeaseRevoke", "LeaseCheckpoint",
		"Alarm", "ClusterVersionSet", "ClusterMemberAttrSet", "DowngradeInfoSet", "unknown"} {
		m[op] = &[2]prometheus.Observer{
			metrics.ServerApplyDurationSeconds.WithLabelValues("v3", op, "false"),
			metrics.ServerApplyDurationSeconds.WithLabelValues("v3", op, "true"),
		}
	}
	return m
}()
