package logging

import (
	"fmt"
	"path"
	"strings"

	"go.uber.org/zap/zapcore"
)

// PackageLevels are the levels of --log-package-levels by the directory of the source file;
// "" is the level for all other directories.
type PackageLevels map[string]zapcore.Level

// formerNames maps the names of etcd's packages, as the flag takes them, to the packages
// here that write their lines.
var formerNames = map[string][]string{
	"etcdmain": {"etcd"}, "embed": {"etcd", "config", "listen"}, "etcdserver": {"server", "apply", "proposal", "readindex"},
	"rafthttp": {"transport"}, "raft": {"raft"}, "wal": {"raftlog"}, "snap": {"snapshot"}, "api": {"rpc", "httpapi"},
	"*": {""},
}

var formerLevels = map[string]zapcore.Level{
	"CRITICAL": zapcore.DPanicLevel, "ERROR": zapcore.ErrorLevel, "WARNING": zapcore.WarnLevel, "NOTICE": zapcore.InfoLevel,
	"INFO": zapcore.InfoLevel, "DEBUG": zapcore.DebugLevel, "TRACE": zapcore.DebugLevel,
}

// ParsePackageLevels parses package=LEVEL,package=LEVEL. Levels are CRITICAL, ERROR,
// WARNING, NOTICE, INFO, DEBUG, TRACE or their first letters; packages are etcd's names or
// directories of this program, and * is all others.
func ParsePackageLevels(text string) (PackageLevels, error) {
	levels := PackageLevels{}
	for item := range strings.SplitSeq(text, ",") {
		if item == "" {
			continue
		}
		name, level, ok := strings.Cut(item, "=")
		l, known := formerLevels[strings.ToUpper(level)]
		for full, v := range formerLevels {
			if !known && len(level) == 1 && strings.EqualFold(full[:1], level) {
				l, known = v, true
			}
		}
		if !ok || name == "" || !known {
			return nil, fmt.Errorf("--log-package-levels: %q is not package=LEVEL with a level of CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG or TRACE", item)
		}
		dirs := formerNames[name]
		if dirs == nil {
			dirs = []string{name}
		}
		for _, dir := range dirs {
			levels[dir] = l
		}
	}
	return levels, nil
}

// lowest returns the lowest level of any package.
func (p PackageLevels) lowest(rest zapcore.Level) zapcore.Level {
	for _, l := range p {
		rest = min(rest, l)
	}
	return rest
}

// packageCore drops lines below the level of the package that writes them.
type packageCore struct {
	zapcore.Core
	levels PackageLevels
	rest   zapcore.Level
}

func (c packageCore) With(fields []zapcore.Field) zapcore.Core {
	return packageCore{c.Core.With(fields), c.levels, c.rest}
}

// Check accepts the line; only Write knows its source file.
func (c packageCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c packageCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level, ok := c.levels[origin(e.Caller)]
	if !ok {
		if level, ok = c.levels[""]; !ok {
			level = c.rest
		}
	}
	if e.Level < level {
		return nil
	}
	return c.Core.Write(e, fields)
}

// origin returns the last element of the source file's directory; for the consensus library
// that is raft.
func origin(c zapcore.EntryCaller) string {
	dir := path.Dir(c.File)
	if strings.Contains(dir, "/raft/v3") {
		return "raft"
	}
	return path.Base(dir)
}
