// Command release makes what is published: for each architecture an archive,
// packages for Debian and for RPM, an image for containers, a list of what is
// in the binaries, and the sums of all of it.
//
// In: the checked-out commit and the modules that go.sum names. Out: the files
// below -out. Always true: the same commit and the same Go give the same bytes,
// on whatever machine, in whatever directory and at whatever time: every time
// stamp is the commit's, every list is sorted, and nothing is taken from the
// machine.
package main
