package datadir

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/raftlog"
)

// HasLog reports whether a member has begun in a log directory. Until then the
// flags say who it is, and afterwards the log alone.
func HasLog(fs vfs.FS, dir string) (bool, error) {
	there, err := raftlog.Probe(fs, dir)
	if err != nil {
		return false, fmt.Errorf("look for a raft log in %s: %w: the user that this process runs as must be able to read and write --data-dir and --wal-dir", dir, err)
	}
	return there, nil
}

// NeverRan reports whether the log in a directory has been made and nothing more:
// its member ended at its first start, before it had any entry.
func NeverRan(dir string) bool {
	c, err := raftlog.Inspect(vfs.Default, dir, nil)
	return err == nil && c.HardState.GetTerm() == 0 && c.Last == 0
}
