package server

import (
	"errors"
	"fmt"

	"quorate/internal/engine"
	"quorate/internal/raftlog"
)

// wayOut is what to do about a member whose own data cannot be used.
const wayOut = "remove this member from its cluster and add it again with an empty directory, or restore a backup with 'etcdutl snapshot restore'"

// withWayOut adds to an error about damaged files how to go on.
func withWayOut(err error) error {
	log, store := (*raftlog.CorruptError)(nil), (*engine.CorruptionError)(nil)
	if errors.As(err, &log) || errors.As(err, &store) {
		return fmt.Errorf("%w. Check the disk. If a cluster has the data, %s", err, wayOut)
	}
	return err
}
