//go:build !race

package mvcc

// poison overwrites memory that is given back. The tests that look for races have it.
const poison = false
