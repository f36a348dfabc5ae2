//go:build race

package mvcc

const poison = true
