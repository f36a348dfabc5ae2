// Package handbook runs the commands of docs/handbook on simulated hosts, and compares what they print with what
// the pages show.
//
// In: the English pages, and the binaries of this tree. Out: network namespaces with the names and addresses of
// the pages, each with its own /etc, /var/lib, /usr/local/bin and /root, so that a command runs as a reader
// would type it; this test stands in for systemctl and journalctl.
//
// Invariant: a command block of a page is run, or gives the reason why it is not; an output block belongs to the
// command before it, and its lines are among those that the command printed.
package handbook
