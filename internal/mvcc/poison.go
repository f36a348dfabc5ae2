//go:build !race

package mvcc

// poison enables overwriting of memory that is released. It is set in race-detector builds.
const poison = false
