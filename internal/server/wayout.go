package server

import (
	"errors"
	"fmt"

	"quorate/internal/engine"
	"quorate/internal/raftlog"
)

// wayOut says what to do about a member whose data cannot be used.
const wayOut = "remove this member from its cluster and add it again with an empty directory, or restore a backup with 'etcdutl snapshot restore'"

// withWayOut adds instructions to an error about damaged files.
func withWayOut(err error) error {
	log, store := (*raftlog.CorruptError)(nil), (*engine.CorruptionError)(nil)
	if errors.As(err, &log) || errors.As(err, &store) {
		if store != nil && log == nil {
			return fmt.Errorf("%w. Check the disk. If a cluster has the data, 'etcdutl member rebuild' fetches it; or %s", err, wayOut)
		}
		return fmt.Errorf("%w. Check the disk. If a cluster has the data, %s", err, wayOut)
	}
	return err
}
