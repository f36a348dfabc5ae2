// Package failure starts the server with mistakes, damage and a full disk, and checks its messages, its exit
// code and what it leaves on disk.
//
// In: the server binary, built from this tree or given with -args -etcd=PATH, and real etcd with -real=PATH to
// compare exit codes. Out: a test per mistake. Invariant: a server that refuses to start prints one line that
// names the cause, and leaves the disk as it was.
package failure
