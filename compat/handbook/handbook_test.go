package handbook

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"quorate/compat/child"
)

func TestAdvice(t *testing.T)    { pages(t, "tuning.md", "clients.md", "v2.md", "faq.md") }
func TestFlags(t *testing.T)     { pages(t, "flags.md") }
func TestOperating(t *testing.T) { pages(t, "operating.md") }
func TestSetUp(t *testing.T)     { pages(t, "setup.md") }

// pages runs pages, section by section, on hosts of their own.
func pages(t *testing.T, names ...string) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+programs["etcd"], "-etcdctl="+programs["etcdctl"], "-etcdutl="+programs["etcdutl"], "-section="+*only, fmt.Sprintf("-record=%v", *record), "-seeing="+seeing.String()) {
		return
	}
	l := newLab(t, 4)
	for _, name := range names {
		sections, err := readPage(name)
		if err != nil {
			t.Fatal(err)
		}
		l.recorded = map[int]string{}
		for _, s := range sections {
			if len(s.steps) == 0 || !strings.Contains(s.title, *only) {
				continue
			}
			t.Run(s.title, func(t *testing.T) {
				state, _, _ := strings.Cut(s.cluster, ", then ")
				if state == "" {
					state = "none"
				}
				l.prepare(t, state)
				for _, x := range s.steps {
					l.step(t, name, x)
				}
			})
		}
		if len(l.recorded) > 0 {
			l.keep(t, name)
		}
	}
	l.prepare(t, "none")
}

// keep writes the recorded output into a page.
func (l *lab) keep(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join("../../docs/handbook", name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := strings.SplitAfter(string(b), "\n")
	for at, text := range l.recorded {
		page[at] = strings.TrimRight(text, "\n") + "\n"
	}
	if err := os.WriteFile(path, []byte(strings.Join(page, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// said looks up the messages of log lines in the sources.
func (l *lab) said(t *testing.T, page string, s step) {
	t.Helper()
	for _, line := range s.shows {
		var shown struct{ Msg string }
		if err := json.Unmarshal([]byte(line), &shown); err != nil || shown.Msg == "" {
			t.Fatalf("%s:%d: no log line: %s", page, s.line, line)
		}
		found := false
		err := filepath.WalkDir("../../internal", func(path string, d fs.DirEntry, err error) error {
			if err != nil || found || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			found = strings.Contains(string(b), `"`+shown.Msg+`"`)
			return err
		})
		if err != nil || !found {
			t.Errorf("%s:%d: no part of the server says %q: %v", page, s.line, shown.Msg, err)
		}
	}
}
