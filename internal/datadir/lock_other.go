//go:build !linux

package datadir

import "github.com/cockroachdb/pebble/v2/vfs"

// lockFile does nothing on this platform: the log's own lock remains.
func lockFile(vfs.File) error { return nil }
