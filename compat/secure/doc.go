// Package secure shows that servers keep to whom they are told to trust: TLS between members and
// towards clients, replaced while they run, generated, restricted and revoked; ports that speak
// several protocols; what wrong files come to.
//
// In: the binaries of this tree, and real etcd 3.7 to build clusters with and to compare errors
// with. Out: a verdict. Always true: every certificate was made for the test that uses it; nobody
// outside this machine is asked anything.
package secure
