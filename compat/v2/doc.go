// Package v2 compares what two servers answer over the v2 API: keys, watches, members, machines, statistics,
// authentication, and etcdctl with ETCDCTL_API=2.
//
// In: two server binaries, real etcd 3.5 and the one under test, both with --enable-v2; the requests that were
// recorded with etcd 3.4, and more. Out: test failures that name the request and show both answers.
//
// Invariant: status, headers and body are compared, byte by byte except what normalise.go lists.
package v2
