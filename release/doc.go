// Command release builds what is published: for each architecture an archive, packages for Debian and for RPM, a
// container image, a list of what is in the binaries, and the checksums of all of it.
//
// In: the checked-out commit and the modules that go.sum names. Out: the files below -out. Invariant: the same
// commit and the same Go give the same bytes, on any machine, in any directory and at any time: every time stamp
// is the commit's, every list is sorted, and nothing is taken from the machine.
package main
