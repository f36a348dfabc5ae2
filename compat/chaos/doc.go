// Package chaos runs clusters of real processes under several faults at once, drawn from a seed, and checks what
// clients recorded.
//
// In: the server binary, real etcd 3.7 for the seat of one member in part of the runs, a seed and a duration.
// Out: a verdict on linearizability, acknowledged writes, watch streams, leases and the equality of all members;
// on failure also the timeline of the faults, and the directories.
//
// The machines are network namespaces. Their network is this process: it forwards each packet between them, so
// it can lose, delay, duplicate and hold back packets in each direction without any support by the kernel
// (wire_test.go). Each member has a file system of its own, which can be filled and frozen (disk_test.go), and a
// wall clock of its own, which can jump (child.WallClock). Processes are killed and paused.
//
// Invariant: every fault ends within its round. A round ends with a healthy cluster, or the test fails.
package chaos
