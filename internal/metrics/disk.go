package metrics

// What DiskFull tells of.
const (
	FullLog   = "log"   // the raft log
	FullStore = "store" // the engine
)

// DiskFull is 1 while a member refuses writes because its log or its store finds no
// room on its disk. etcd has no such series: it ends instead.
var DiskFull = newGaugeVec("quorate_disk_full", "1 while the raft log or the store finds no room on its disk, and writes are refused", "of")

func init() { // so that an alert can tell "no" from "not known"
	DiskFull.WithLabelValues(FullLog)
	DiskFull.WithLabelValues(FullStore)
}
