package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
	"go.uber.org/zap"
)

func TestLine(t *testing.T) {
	var stdout, stderr bytes.Buffer
	lg, close, err := New(Options{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer close()
	lg.Debug("not written")
	lg.Info("ready to serve client requests", zap.String("k", "v"))
	if stdout.Len() > 0 {
		t.Errorf("stdout has %q", stdout.String())
	}
	want := regexp.MustCompile(`^\{"level":"info","ts":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d{4})","caller":"logging/logging_test.go:\d+","msg":"ready to serve client requests","k":"v"\}\n$`)
	if !want.MatchString(stderr.String()) {
		t.Errorf("line is %s", stderr.String())
	}
	stderr.Reset()
	lg.Error("bad")
	var line map[string]any
	if err := json.Unmarshal(stderr.Bytes(), &line); err != nil || line["stacktrace"] == nil {
		t.Errorf("error line has no stack: %s, %v", stderr.String(), err)
	}
}

func TestOutputs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "log")
	tests := []struct {
		outputs        []string
		stdout, stderr bool
		file           bool
		err            string
	}{
		{outputs: nil, stderr: true},
		{outputs: []string{"default"}, stderr: true},
		{outputs: []string{"stdout", "stderr"}, stdout: true, stderr: true},
		{outputs: []string{"stdout", file}, stdout: true, file: true},
		{outputs: []string{"stdout", "/dev/null"}},
		{outputs: []string{"default", "stdout"}, err: `multi logoutput for "default" is not supported yet`},
		{outputs: []string{"stderr", "systemd/journal"}, err: `running with systemd/journal but other '--log-outputs' values (["stderr" "systemd/journal"]) are configured with 'default'; override 'default' value with something else`},
		{outputs: []string{filepath.Join(dir, "no", "such", "dir")}, err: "open --log-outputs file: open " + filepath.Join(dir, "no", "such", "dir") + ": no such file or directory"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.outputs, ","), func(t *testing.T) {
			os.Remove(file)
			var stdout, stderr bytes.Buffer
			lg, close, err := New(Options{Outputs: tt.outputs, Stdout: &stdout, Stderr: &stderr})
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Fatalf("got  %v\nwant %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			lg.Warn("w")
			close()
			data, _ := os.ReadFile(file)
			for name, got := range map[string]bool{"stdout": stdout.Len() > 0 == tt.stdout, "stderr": stderr.Len() > 0 == tt.stderr, "file": len(data) > 0 == tt.file} {
				if !got {
					t.Errorf("%s: stdout %q, stderr %q, file %q", name, stdout.String(), stderr.String(), data)
				}
			}
		})
	}
}

func TestLevelAndFormat(t *testing.T) {
	var stderr bytes.Buffer
	_, _, err := New(Options{Level: "foo"})
	if level := (*LevelError)(nil); !errors.As(err, &level) || err.Error() != `unrecognized level: "foo"` {
		t.Errorf("level foo: %v", err)
	}
	if _, _, err := New(Options{Format: "x"}); err == nil || err.Error() != "unknown log format: x, supported values json, console" {
		t.Errorf("format x: %v", err)
	}
	lg, _, err := New(Options{Level: "error", Format: "console", Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	lg.Warn("quiet")
	lg.Error("loud")
	if s := stderr.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "\terror\t") || strings.HasPrefix(s, "{") {
		t.Errorf("console at level error writes %q", s)
	}
}

// TestSampling writes one message often: the first hundred in a second and then every
// hundredth are written.
func TestSampling(t *testing.T) {
	var stderr bytes.Buffer
	lg, _, err := New(Options{Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		lg.Info("again")
	}
	// 109 within one second; a clock tick in between starts a new hundred.
	if n := strings.Count(stderr.String(), "\n"); n < 109 || n >= 1000 {
		t.Errorf("%d of 1000 equal lines were written", n)
	}
}

func TestJournalFields(t *testing.T) {
	for _, tt := range []struct {
		line string
		want journal.Priority
		pkg  string
	}{
		{`{"level":"debug","caller":"a/b.go:1"}`, journal.PriDebug, "a"},
		{`{"level":"info","caller":"a/b.go:1"}`, journal.PriInfo, "a"},
		{`{"level":"warn","caller":"a/b.go:1"}`, journal.PriWarning, "a"},
		{`{"level":"error","caller":"a/b.go:1"}`, journal.PriErr, "a"},
		{`{"level":"fatal","caller":"a/b.go:1"}`, journal.PriCrit, "a"},
		{"2026-01-01\tinfo\ta/b.go:1\ttext", journal.PriInfo, ""},
	} {
		pri, fields := journalFields([]byte(tt.line))
		if pri != tt.want || fields["PACKAGE"] != tt.pkg || fields["SYSLOG_IDENTIFIER"] == "" {
			t.Errorf("%s: priority %d, fields %v", tt.line, pri, fields)
		}
	}
}

// TestJournalFallback writes where no journal listens, unless there is one.
func TestJournalFallback(t *testing.T) {
	if journal.Enabled() {
		if _, err := newJournal(io.Discard); err != nil {
			t.Errorf("journal is there and not used: %v", err)
		}
		return
	}
	if _, _, err := New(Options{Outputs: []string{OutputJournal}}); err == nil {
		t.Errorf("no error without a journal")
	}
	var fallback bytes.Buffer
	w := &journalWriter{fallback: &fallback}
	line := []byte(`{"level":"info"}` + "\n")
	if n, err := w.Write(line); n != len(line) || err != nil || fallback.String() != string(line) {
		t.Errorf("wrote %d, %v, fallback %q", n, err, fallback.String())
	}
}
