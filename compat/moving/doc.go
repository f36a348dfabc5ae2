// Package moving moves data directories from real etcd to the server under test and back, and snapshot files from either to the other.
//
// In: the three binaries of this tree, and real etcd 3.5, 3.6, 3.7 with its tools. Out: a test per direction, and one for sequences of steps
// that a seed chooses. Invariant: what was acknowledged before a move is present after it, with equal HashKV, leases, members and ids; what
// cannot be moved is refused and left unchanged.
//
// -args -keys=1000000 sets the size of the measured move there and back.
package moving
