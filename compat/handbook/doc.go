// Package handbook runs the commands of docs/handbook on machines of its own, and compares what
// they print with what the pages show.
//
// In: the English pages, and the binaries of this tree. Out: network namespaces with the names and
// addresses of the pages, each with its own /etc, /var/lib, /usr/local/bin and /root, so that a
// command runs as a reader would type it; systemctl and journalctl are played by this test.
//
// Always true: a command block of a page is run, or says why it is not; an output block belongs to
// the command before it, and its lines are among those that the command printed.
package handbook
