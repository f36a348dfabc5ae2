package datadir

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/raftlog"
)

// HasLog reports whether a directory contains a raft log. Until it does, the flags
// determine the identity of the member; afterwards the log does.
func HasLog(fs vfs.FS, dir string) (bool, error) {
	there, err := raftlog.Probe(fs, dir)
	if err != nil {
		return false, fmt.Errorf("look for a raft log in %s: %w: the user that this process runs as must be able to read and write --data-dir and --wal-dir", dir, err)
	}
	return there, nil
}

// NeverRan reports whether a log was created but is still empty: its member exited
// during its first start, before it had any entry.
func NeverRan(dir string) bool {
	c, err := raftlog.Inspect(vfs.Default, dir, nil)
	return err == nil && c.HardState.GetTerm() == 0 && c.Last == 0
}
