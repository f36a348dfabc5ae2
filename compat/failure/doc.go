// Package failure starts the server with mistakes, damage and a full disk, and looks at what it
// says, how it ends and what it leaves on disk.
//
// In: the server binary, built from this tree or given with -args -etcd=PATH, and real etcd with
// -real=PATH to compare exit codes. Out: a test a mistake. Always true: a server that refuses to
// start does so with one line that names the cause, and leaves the disk as it was.
package failure
