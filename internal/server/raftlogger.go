package server

import (
	"strings"

	"go.uber.org/zap"
)

// raftLogger gives raft's lines to the member's log.
type raftLogger struct{ *zap.SugaredLogger }

func (l raftLogger) Warning(v ...any)                 { l.Warn(v...) }
func (l raftLogger) Warningf(format string, v ...any) { l.Warnf(format, v...) }

// Infof leaves out the line about acknowledgements that say nothing new. With
// writes to the log in flight, raft asks for several of one entry, so under load
// there are hundreds of these a second.
func (l raftLogger) Infof(format string, v ...any) {
	if strings.HasPrefix(format, "entry at index %d missing from unstable log") {
		return
	}
	l.WithOptions(zap.AddCallerSkip(1)).Infof(format, v...)
}
