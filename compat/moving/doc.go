// Package moving takes data directories from real etcd to the server under test and back, and
// snapshot files from either to the other.
//
// In: the three binaries of this tree, and real etcd 3.5, 3.6, 3.7 with its tools. Out: a test a
// way, and one for orders of steps that a seed chooses. Always true: what was acknowledged before a move is there after it, with equal HashKV,
// leases, members and ids; what cannot be moved is refused and left as it is.
//
// -args -keys=1000000 makes the measured way there and back as large as one likes.
package moving
