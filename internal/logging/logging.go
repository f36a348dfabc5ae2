// Package logging builds the member's logger.
//
// In: the values of --log-level, --log-format and --log-outputs. Out: a zap logger. Always
// true: a JSON line has the fields, names and time format of etcd 3.7 (level, ts, caller,
// msg, then the fields of the event), so log shippers and test harnesses that parse etcd's
// log can parse this one.
package logging

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"gopkg.in/natefinch/lumberjack.v2"
)

// Outputs with a special meaning; everything else is a file path.
const (
	OutputDefault = "default"         // standard error
	OutputStderr  = "stderr"          // standard error
	OutputStdout  = "stdout"          // standard output
	OutputJournal = "systemd/journal" // the journal, through its native protocol
)

// Formats of a log line.
const (
	FormatJSON    = "json"
	FormatConsole = "console"

	// FormatCapnslog is the format of etcd 3.4 with --logger=capnslog, with the fields
	// appended.
	FormatCapnslog = "capnslog"
)

// In each second, a pair of message and level is written 100 times, then every 100th time,
// so that a failing peer or client cannot fill the disk.
const (
	sampleFirst = 100
	sampleEvery = 100
)

// Options say where and how to log. Empty fields have etcd's defaults.
type Options struct {
	Level   string   // debug, info, warn, error, dpanic, panic, fatal; "" is info
	Format  string   // json or console; "" is json
	Outputs []string // see the Output constants; empty is {"default"}

	Packages PackageLevels // for lines from certain packages: a level below or above Level

	Rotation *Rotation // of the files among the outputs; nil is no rotation

	Stdout io.Writer // nil is os.Stdout
	Stderr io.Writer // nil is os.Stderr
}

// LevelError reports an invalid level. etcd panics on it, with exit code 2.
type LevelError struct{ Level string }

func (e *LevelError) Error() string { return fmt.Sprintf("unrecognized level: %q", e.Level) }

// ParseLevel parses the value of --log-level.
func ParseLevel(s string) (zapcore.Level, error) {
	var l zapcore.Level
	if err := l.Set(s); err != nil {
		return 0, &LevelError{Level: s}
	}
	return l, nil
}

// New builds a logger. It opens files for append and creates missing ones; close closes
// them and must be called once, after the last line.
func New(o Options) (lg *zap.Logger, close func(), err error) {
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	outputs, err := checkOutputs(o.Outputs)
	if err != nil {
		return nil, nil, err
	}
	level, err := ParseLevel(o.Level)
	if err != nil {
		return nil, nil, err
	}
	encoder, err := newEncoder(o.Format)
	if err != nil {
		return nil, nil, err
	}
	sink, close, err := openOutputs(outputs, o)
	if err != nil {
		return nil, nil, err
	}
	core := zapcore.NewCore(encoder, sink, o.Packages.lowest(level))
	if len(o.Packages) > 0 {
		core = packageCore{core, o.Packages, level}
	}
	if !slices.Contains(outputs, OutputJournal) {
		core = zapcore.NewSamplerWithOptions(core, time.Second, sampleFirst, sampleEvery)
	}
	lg = zap.New(core, zap.AddCaller(), zap.AddStacktrace(zapcore.ErrorLevel), zap.ErrorOutput(sink))
	return lg, close, nil
}

// checkOutputs rejects combinations of outputs that etcd rejects.
func checkOutputs(outputs []string) ([]string, error) {
	if len(outputs) == 0 {
		return []string{OutputDefault}, nil
	}
	if len(outputs) > 1 && slices.Contains(outputs, OutputDefault) {
		return nil, fmt.Errorf("multi logoutput for %q is not supported yet", OutputDefault)
	}
	if len(outputs) > 1 && slices.Contains(outputs, OutputJournal) {
		return nil, fmt.Errorf("running with systemd/journal but other '--log-outputs' values (%q) are configured with 'default'; override 'default' value with something else", outputs)
	}
	return outputs, nil
}

func newEncoder(format string) (zapcore.Encoder, error) {
	cfg := zapcore.EncoderConfig{
		TimeKey:        "ts",
		LevelKey:       "level",
		NameKey:        "logger",
		CallerKey:      "caller",
		MessageKey:     "msg",
		StacktraceKey:  "stacktrace",
		LineEnding:     zapcore.DefaultLineEnding,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeTime:     zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000000Z0700"),
		EncodeDuration: zapcore.StringDurationEncoder,
		EncodeCaller:   zapcore.ShortCallerEncoder,
	}
	switch format {
	case FormatJSON, "":
		return zapcore.NewJSONEncoder(cfg), nil
	case FormatConsole:
		return zapcore.NewConsoleEncoder(cfg), nil
	case FormatCapnslog:
		return zapcore.NewConsoleEncoder(capnslog(cfg)), nil
	}
	return nil, fmt.Errorf("unknown log format: %s, supported values json, console", format)
}

// capnslog is the line format of etcd 3.4: time, a letter for the level, the package, the
// message.
func capnslog(cfg zapcore.EncoderConfig) zapcore.EncoderConfig {
	cfg.ConsoleSeparator = " "
	cfg.EncodeTime = zapcore.TimeEncoderOfLayout("2006-01-02 15:04:05.000000")
	cfg.EncodeLevel = func(l zapcore.Level, out zapcore.PrimitiveArrayEncoder) {
		letter := l.CapitalString()[:1]
		if l > zapcore.ErrorLevel {
			letter = "C"
		}
		out.AppendString(letter + " |")
	}
	cfg.EncodeCaller = func(c zapcore.EntryCaller, out zapcore.PrimitiveArrayEncoder) { out.AppendString(origin(c) + ":") }
	return cfg
}

// openOutputs opens every output once and combines them. With /dev/null among them nothing
// is logged.
func openOutputs(outputs []string, o Options) (zapcore.WriteSyncer, func(), error) {
	if slices.Contains(outputs, os.DevNull) {
		return zapcore.AddSync(io.Discard), func() {}, nil
	}
	var (
		syncers []zapcore.WriteSyncer
		files   []io.Closer
		seen    = map[string]bool{}
	)
	closeFiles := func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, out := range outputs {
		if out == OutputDefault {
			out = OutputStderr
		}
		if seen[out] {
			continue
		}
		seen[out] = true
		switch out {
		case OutputStderr:
			syncers = append(syncers, noSync{o.Stderr})
		case OutputStdout:
			syncers = append(syncers, noSync{o.Stdout})
		case OutputJournal:
			j, err := newJournal(o.Stderr)
			if err != nil {
				closeFiles()
				return nil, nil, err
			}
			syncers = append(syncers, noSync{j})
		default:
			path := strings.TrimPrefix(out, "file://")
			if o.Rotation != nil {
				f := o.Rotation.open(path)
				files = append(files, f)
				syncers = append(syncers, noSync{f})
				break
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
			if err != nil {
				closeFiles()
				return nil, nil, fmt.Errorf("open --log-outputs file: %w", err)
			}
			files = append(files, f)
			syncers = append(syncers, f)
		}
	}
	return zapcore.Lock(zap.CombineWriteSyncers(syncers...)), closeFiles, nil
}

// Rotation says when to rotate a log file. The json tags are the keys of
// --log-rotation-config-json.
type Rotation struct {
	MaxSize    int  `json:"maxsize"`    // MB; 0 is 100
	MaxAge     int  `json:"maxage"`     // days to keep old files; 0 is forever
	MaxBackups int  `json:"maxbackups"` // number of old files to keep; 0 is all
	LocalTime  bool `json:"localtime"`  // timestamps in file names in local time instead of UTC
	Compress   bool `json:"compress"`   // compress old files with gzip
}

func (r *Rotation) open(path string) *lumberjack.Logger {
	return &lumberjack.Logger{Filename: path, MaxSize: r.MaxSize, MaxAge: r.MaxAge, MaxBackups: r.MaxBackups, LocalTime: r.LocalTime, Compress: r.Compress}
}

// noSync hides Sync of terminals and pipes, which always fails there.
type noSync struct{ io.Writer }

func (noSync) Sync() error { return nil }
