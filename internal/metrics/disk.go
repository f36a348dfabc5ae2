package metrics

// Values of the label "of" of DiskFull.
const (
	FullLog   = "log"   // the raft log
	FullStore = "store" // the engine
)

// DiskFull is 1 while a member refuses writes because the disk of its log or its store is
// full. etcd has no such metric: it exits instead.
var DiskFull = newGaugeVec("quorate_disk_full", "1 while the raft log or the store finds no room on its disk, and writes are refused", "of")

func init() { // at zero, so that alerts can distinguish "no" from "unknown"
	DiskFull.WithLabelValues(FullLog)
	DiskFull.WithLabelValues(FullStore)
}
