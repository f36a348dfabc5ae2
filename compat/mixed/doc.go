// Package mixed runs members of real etcd and of this server in one cluster.
//
// In: the server under test and real etcd 3.7, 3.6 and 3.5 as binaries, a seed. Out: a verdict
// for each way of being together: founding, joining, replacing each other one by one under load
// and faults, catching up from each other's snapshots, agreeing on a version. Always true: every
// peer address that a member advertises is a gate of the test, which knows who dials and can cut
// any pair of members off from each other; HashKV of all members is compared at every step; the
// log of every process that ever ran is read at the end, and a line of level error that is not
// listed with its reason fails the test.
package mixed
