//go:build !linux

package mvcc

func mapMemory(int) []byte { return nil }

func dropMemory([]byte, int) bool { return false }

func unmapMemory([]byte) {}
