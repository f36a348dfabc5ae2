package raftnode

import (
	"strings"

	"go.uber.org/zap"
)

// Logger writes raft's log lines to the member's log.
type Logger struct{ *zap.SugaredLogger }

// NewLogger returns a raft logger on top of lg.
func NewLogger(lg *zap.Logger) Logger { return Logger{lg.Named("raft").Sugar()} }

// Warning is raft's name for Warn.
func (l Logger) Warning(v ...any) { l.Warn(v...) }

// Warningf is raft's name for Warnf.
func (l Logger) Warningf(format string, v ...any) { l.Warnf(format, v...) }

// Infof drops the line about redundant acknowledgements. With log writes in flight, raft
// requests several for one entry, so under load there are hundreds of these a second.
func (l Logger) Infof(format string, v ...any) {
	if strings.HasPrefix(format, "entry at index %d missing from unstable log") {
		return
	}
	l.WithOptions(zap.AddCallerSkip(1)).Infof(format, v...)
}
