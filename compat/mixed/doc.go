// Package mixed runs members of real etcd and of this server in one cluster.
//
// In: the server under test and real etcd 3.7, 3.6 and 3.5 as binaries, a seed. Out: a verdict for each kind of
// coexistence: founding, joining, replacing each other one by one under load and faults, catching up from each
// other's snapshots, agreeing on a version. Invariant: every peer address that a member advertises is a proxy of
// the test, a gate, which knows who connects and can partition any pair of members; HashKV of all members is
// compared at every step; the log of every process that ever ran is read at the end, and a line of level error
// that is not listed with its reason fails the test.
package mixed
