package logging

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestPackageLevels(t *testing.T) {
	levels, err := ParsePackageLevels("etcdserver=DEBUG,raft=E,*=WARNING")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	lg, closeLog, err := New(Options{Stderr: &out, Packages: levels})
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog()
	for _, l := range []struct {
		file  string
		level zapcore.Level
		want  bool
	}{
		{"/x/quorate/internal/server/run.go", zapcore.DebugLevel, true},
		{"/x/quorate/internal/apply/put.go", zapcore.DebugLevel, true},
		{"/m/go.etcd.io/raft/v3@v3.7.0/raft.go", zapcore.WarnLevel, false},
		{"/m/go.etcd.io/raft/v3@v3.7.0/raft.go", zapcore.ErrorLevel, true},
		{"/x/quorate/internal/rpc/kv.go", zapcore.InfoLevel, false},
		{"/x/quorate/internal/rpc/kv.go", zapcore.WarnLevel, true},
	} {
		out.Reset()
		e := zapcore.Entry{Level: l.level, Message: "m", Caller: zapcore.EntryCaller{Defined: true, File: l.file}}
		if ce := lg.Core().Check(e, nil); ce != nil {
			ce.Write()
		}
		if got := out.Len() > 0; got != l.want {
			t.Errorf("%s at %s: written %t, want %t", l.file, l.level, got, l.want)
		}
	}
	for _, bad := range []string{"x", "=DEBUG", "raft=LOUD", "raft"} {
		if _, err := ParsePackageLevels(bad); err == nil || !strings.Contains(err.Error(), "--log-package-levels") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestCapnslogLines(t *testing.T) {
	var out bytes.Buffer
	lg, closeLog, err := New(Options{Stderr: &out, Format: FormatCapnslog})
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog()
	lg.Warn("a thing happened", zap.String("to", "this member"))
	want := regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} W \| logging: a thing happened \{"to": "this member"\}\n$`)
	if !want.MatchString(out.String()) {
		t.Errorf("%q", out.String())
	}
}
