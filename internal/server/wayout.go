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
		return fmt.Errorf("%w. %s", err, remedy(store != nil && log == nil))
	}
	return err
}

// remedy says what to do about a damaged file. A store alone can be fetched from the other
// members; with a damaged log the member may have forgotten what it promised them.
func remedy(storeOnly bool) string {
	if storeOnly {
		return "Check the disk. If a cluster has the data, 'etcdutl member rebuild' fetches it; or " + wayOut
	}
	return "Check the disk. If a cluster has the data, " + wayOut
}
