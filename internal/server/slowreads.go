package server

import (
	"time"

	"go.uber.org/zap"

	"quorate/internal/replica"
)

// tellSlowReads logs, in etcd's words, reads that no quorum confirms.
func tellSlowReads(lg *zap.Logger, s replica.SlowReads, limit time.Duration) {
	if s.Again != 0 {
		lg.Warn("waiting for ReadIndex response took too long, retrying", zap.Uint64("sent-request-id", s.Again), zap.Duration("retry-timeout", readRetry))
	}
	if s.TimedOut {
		lg.Warn("timed out waiting for read index response (local node might have slow network)", zap.Duration("timeout", limit))
	}
}
