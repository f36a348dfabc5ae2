package internal

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A document in two languages has the same headings, by level, and the same code blocks in both.
// A heading that is a name stays as it is.
func TestDocumentsInStep(t *testing.T) {
	translated, err := filepath.Glob("../docs/*.zh-CN.md")
	if err != nil || len(translated) == 0 {
		t.Fatalf("no translated documents: %v", err)
	}
	for _, zh := range translated {
		en := strings.TrimSuffix(zh, ".zh-CN.md") + ".md"
		a, b := outline(t, en), outline(t, zh)
		for i := range max(len(a), len(b)) {
			if i >= len(a) || i >= len(b) || a[i] != b[i] {
				t.Errorf("%s and %s part at heading or code block %d:\n%q\n%q", en, zh, i+1, a[min(i, len(a)):min(i+1, len(a))], b[min(i, len(b)):min(i+1, len(b))])
				break
			}
		}
	}
}

// outline lists a document's headings and code blocks. Of a heading that is translated only the
// level counts.
func outline(t *testing.T, path string) (parts []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var code []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && code == nil:
			code = []string{line}
		case fence:
			parts = append(parts, strings.Join(append(code, line), "\n"))
			code = nil
		case code != nil:
			code = append(code, line)
		case strings.HasPrefix(line, "#"):
			level, title, _ := strings.Cut(line, " ")
			if slices.Contains(strings.Fields(title), title) && !strings.ContainsFunc(title, func(r rune) bool { return r > 0x7f }) && level == "###" {
				level += " " + title
			}
			parts = append(parts, level)
		}
	}
	if code != nil {
		t.Errorf("%s: a code block does not end", path)
	}
	return parts
}
