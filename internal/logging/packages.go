package logging

import (
	"fmt"
	"path"
	"strings"

	"go.uber.org/zap/zapcore"
)

// PackageLevels are the levels of --log-package-levels, by the directory that a
// line comes from; "" is that of all others.
type PackageLevels map[string]zapcore.Level

// formerNames are etcd's packages as the flag knows them, and where their lines
// come from here.
var formerNames = map[string][]string{
	"etcdmain": {"etcd"}, "embed": {"etcd", "config", "listen"}, "etcdserver": {"server", "apply", "proposal", "readindex"},
	"rafthttp": {"transport"}, "raft": {"raft"}, "wal": {"raftlog"}, "snap": {"snapshot"}, "api": {"rpc", "httpapi"},
	"*": {""},
}

var formerLevels = map[string]zapcore.Level{
	"CRITICAL": zapcore.DPanicLevel, "ERROR": zapcore.ErrorLevel, "WARNING": zapcore.WarnLevel, "NOTICE": zapcore.InfoLevel,
	"INFO": zapcore.InfoLevel, "DEBUG": zapcore.DebugLevel, "TRACE": zapcore.DebugLevel,
}

// ParsePackageLevels reads package=LEVEL,package=LEVEL. Levels are CRITICAL,
// ERROR, WARNING, NOTICE, INFO, DEBUG, TRACE or their first letters; packages are
// etcd's names or this program's directories, and * is all others.
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
			return nil, fmt.Errorf("--log-package-levels: %q is no package=LEVEL with a level of CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG or TRACE", item)
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

// lowest is the least level that any package asks for.
func (p PackageLevels) lowest(rest zapcore.Level) zapcore.Level {
	for _, l := range p {
		rest = min(rest, l)
	}
	return rest
}

// packageCore drops lines below the level of where they come from.
type packageCore struct {
	zapcore.Core
	levels PackageLevels
	rest   zapcore.Level
}

func (c packageCore) With(fields []zapcore.Field) zapcore.Core {
	return packageCore{c.Core.With(fields), c.levels, c.rest}
}

// Check takes the line; only Write knows where it comes from.
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

// origin is the last part of the directory of the file that wrote a line; the
// consensus library's is called raft.
func origin(c zapcore.EntryCaller) string {
	dir := path.Dir(c.File)
	if strings.Contains(dir, "/raft/v3") {
		return "raft"
	}
	return path.Base(dir)
}
