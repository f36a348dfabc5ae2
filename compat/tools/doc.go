// Package tools runs etcdctl, ours and real ones of several versions, against servers, ours and
// real ones, and compares what they print.
//
// In: transcripts in testdata/TOOL, recorded from that tool against real etcd 3.7.3, those of the
// v2 API against real etcd 3.5. Out: whether
// the same commands print the same, to the byte but for what [normalise] names, and end with the
// same exit code, when another server answers or when it is our tool that asks.
//
// Always true: every transcript has servers of its own, which nothing else talks to.
package tools
