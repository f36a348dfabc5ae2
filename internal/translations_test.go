package internal

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// A document in two languages has the same headings, by level, and the same code blocks in both.
// A heading that is a name stays as it is.
func TestDocumentsInStep(t *testing.T) {
	var translated []string
	for doc := range documents(t) {
		if strings.HasPrefix(doc, "docs/") && strings.HasSuffix(doc, ".zh-CN.md") {
			translated = append(translated, "../"+doc)
		}
		other := strings.TrimSuffix(doc, ".md") + ".zh-CN.md"
		if _, err := os.Stat("../" + other); err != nil && strings.HasPrefix(doc, "docs/handbook/") && !strings.HasSuffix(doc, ".zh-CN.md") {
			t.Errorf("%s has no translation %s", doc, other)
		}
	}
	if len(translated) < 2 {
		t.Fatalf("translated documents: %q", translated)
	}
	for _, zh := range translated {
		en := strings.TrimSuffix(zh, ".zh-CN.md") + ".md"
		if a, b := targets(t, en), targets(t, zh); !slices.Equal(a, b) {
			t.Errorf("%s and %s do not link to the same:\n%q\n%q", en, zh, a, b)
		}
		a, b := outline(t, en), outline(t, zh)
		for i := range max(len(a), len(b)) {
			if i >= len(a) || i >= len(b) || a[i] != b[i] {
				t.Errorf("%s and %s part at heading or code block %d:\n%q\n%q", en, zh, i+1, a[min(i, len(a)):min(i+1, len(a))], b[min(i, len(b)):min(i+1, len(b))])
				break
			}
		}
	}
}

// targets lists the files that a document links to, in order and without languages and headings.
func targets(t *testing.T, path string) (files []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links(string(b)) {
		file, _, _ := strings.Cut(l, "#")
		files = append(files, strings.Replace(file, ".zh-CN.md", ".md", 1))
	}
	slices.Sort(files)
	return slices.Compact(files)
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
