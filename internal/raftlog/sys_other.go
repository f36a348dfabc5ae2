//go:build !linux

package raftlog

import "github.com/cockroachdb/pebble/v2/vfs"

// Outside Linux the log uses nothing beyond vfs.File: files grow as they are
// written, and vfs.Lock locks the directory.

func setSize(vfs.File, int64) error           { return nil }
func setPrivate(vfs.File) error               { return nil }
func lockSegment(vfs.File) error              { return nil }
func lockDir(vfs.File) (bool, error)          { return false, nil }
func nextData(_ vfs.File, off, _ int64) int64 { return off }
func reserveUnsupported(error) bool           { return true }
