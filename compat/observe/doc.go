// Package observe compares what two servers expose about themselves: metrics, health, version and debugging
// pages.
//
// In: two server binaries, real etcd 3.7 and the one under test. Both get the same load and the same requests.
// Out: test failures that name the series or page and what differs.
//
// Invariant: real etcd decides. A table of expectations holds only where real etcd meets it too, and a series or
// header that the server under test may lack is listed with its reason.
package observe
