// Package tools runs etcdctl, ours and real ones of several versions, against servers, ours and real ones, and
// compares what they print.
//
// In: transcripts in testdata/TOOL, recorded from that tool against real etcd 3.7.3, those of the v2 API against
// real etcd 3.5. Out: whether the same commands print the same, to the byte except what [normalise] names, and
// exit with the same code, when another server answers or when the client is our tool.
//
// Invariant: every transcript has servers of its own, which have no other clients.
package tools
