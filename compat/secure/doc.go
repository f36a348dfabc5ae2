// Package secure shows that servers trust only whom they are configured to trust: TLS between members and
// towards clients, replaced while they run, generated, restricted and revoked; ports that serve several
// protocols; the results of wrong files.
//
// In: the binaries of this tree, and real etcd 3.7 to build clusters with and to compare errors with. Out: a
// verdict. Invariant: every certificate was made for the test that uses it; nothing outside this machine is
// contacted.
package secure
