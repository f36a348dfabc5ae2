// Package harness runs etcd servers as child processes for side-by-side lanes.
//
// In: the path of a server binary that takes etcd's flags, and per-member settings. Out: running members with
// their addresses, log files, CPU and memory readings. A server is only ever a binary path here, so real etcd of
// any version and the server under test are interchangeable, also as members of one cluster.
//
// Invariant: every process belongs to exactly one [Member], is stopped by its own process id and is waited for;
// ports are picked by the kernel; each data directory is below a directory that the caller named or that is
// removed at the end.
package harness
