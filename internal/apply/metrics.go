package apply

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"quorate/internal/metrics"
)

// rare holds the observers of the other operations, those on users and roles,
// whose series appear with their first use.
var rare sync.Map // string → *[2]prometheus.Observer

func rareObservers(op string) *[2]prometheus.Observer {
	o, ok := rare.Load(op)
	if !ok {
		o, _ = rare.LoadOrStore(op, newObservers(op))
	}
	return o.(*[2]prometheus.Observer)
}

func newObservers(op string) *[2]prometheus.Observer {
	return &[2]prometheus.Observer{
		metrics.ServerApplyDurationSeconds.WithLabelValues("v3", op, "false"),
		metrics.ServerApplyDurationSeconds.WithLabelValues("v3", op, "true"),
	}
}

// observers holds the two series (failed, succeeded) of each operation, looked
// up once.
var observers = func() map[string]*[2]prometheus.Observer {
	m := make(map[string]*[2]prometheus.Observer)
	for _, op := range []string{"Put", "Txn", "DeleteRange", "Compaction", "LeaseGrant", "LeaseRevoke", "LeaseCheckpoint",
		"Alarm", "ClusterVersionSet", "ClusterMemberAttrSet", "DowngradeInfoSet", "unknown"} {
		m[op] = newObservers(op)
	}
	return m
}()
