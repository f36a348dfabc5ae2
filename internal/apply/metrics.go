package apply

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"quorate/internal/metrics"
)

// rare holds the observers of all other operations, those on users and roles,
// whose series are created on first use.
var rare sync.Map // string → *[2]prometheus.Observer

func rareObservers(op string) *[2]prometheus.Observer { return observersOf(&rare, "v3", op) }

// ofV2 is the same for requests of the v2 API, by method.
var ofV2 sync.Map

func observeV2(method string, ok bool, d time.Duration) {
	i := 0
	if ok {
		i = 1
	}
	observersOf(&ofV2, "v2", method)[i].Observe(d.Seconds())
}

func observersOf(known *sync.Map, version, op string) *[2]prometheus.Observer {
	o, ok := known.Load(op)
	if !ok {
		o, _ = known.LoadOrStore(op, newObservers(version, op))
	}
	return o.(*[2]prometheus.Observer)
}

func newObservers(version, op string) *[2]prometheus.Observer {
	return &[2]prometheus.Observer{
		metrics.ServerApplyDurationSeconds.WithLabelValues(version, op, "false"),
		metrics.ServerApplyDurationSeconds.WithLabelValues(version, op, "true"),
	}
}

// observers holds the two series (failed, succeeded) of each operation, looked
// up once.
var observers = func() map[string]*[2]prometheus.Observer {
	m := make(map[string]*[2]prometheus.Observer)
	for _, op := range []string{"Put", "Txn", "DeleteRange", "Compaction", "LeaseGrant", "LeaseRevoke", "LeaseCheckpoint",
		"Alarm", "ClusterVersionSet", "ClusterMemberAttrSet", "DowngradeInfoSet", "unknown"} {
		m[op] = newObservers("v3", op)
	}
	return m
}()

func observe(op string, ok bool, d time.Duration) {
	o := observers[op]
	if o == nil {
		o = rareObservers(op)
	}
	i := 0
	if ok {
		i = 1
	}
	o[i].Observe(d.Seconds())
}
