package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The page of flags in the handbook has, in both languages, every flag of --help with its
// default and its variable, or says why it leaves the flag out. Its right examples are
// accepted, and every flag has a wrong one, or a line about what is wrong but not refused. The
// handbook lane runs the wrong examples.
func TestHandbookHasEveryFlag(t *testing.T) {
	for _, c := range []struct{ page, entry, empty, right, wrong string }{
		{"flags.md", `(?m)^### --(\S+)\n\nDefault (.+?), variable ` + "`(ETCD_[A-Z0-9_]+)`", "empty", "Right: `", "Wrong"},
		{"flags.zh-CN.md", `(?m)^### --(\S+)\n\n默认 (.+?)，环境变量 ` + "`(ETCD_[A-Z0-9_]+)`", "空", "正确：`", "错误"},
	} {
		b, err := os.ReadFile(filepath.Join("../../docs/handbook", c.page))
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		_, leftOut, _ := strings.Cut(text, "\n|---|---|\n")
		entries := map[string][]string{}
		for _, m := range regexp.MustCompile(c.entry).FindAllStringSubmatch(text, -1) {
			entries[m[1]] = m
		}
		for _, section := range strings.Split(text, "\n### ")[1:] {
			section, _, _ = strings.Cut(section, "\n## ")
			name, rest, _ := strings.Cut(section, "\n")
			if !strings.Contains(rest, "\n"+c.wrong) {
				t.Errorf("%s: %s has neither a wrong example nor a line about what is wrong with no error", c.page, name)
			}
		}
		known := 0
		for _, f := range Flags() {
			m, listed := entries[f.Name]
			if out := strings.Contains(leftOut, "`--"+f.Name+"`"); listed == out {
				t.Errorf("%s: --%s is explained: %v, left out: %v", c.page, f.Name, listed, out)
			}
			if !listed {
				continue
			}
			known++
			want := "`" + f.Default + "`"
			if f.Default == "" {
				want = c.empty
			}
			if m[2] != want || m[3] != envName(f.Name) {
				t.Errorf("%s: --%s has the default %s and the variable %s, want %s and %s", c.page, f.Name, m[2], m[3], want, envName(f.Name))
			}
		}
		if len(entries) != known {
			t.Errorf("%s explains %d flags, of which --help has %d", c.page, len(entries), known)
		}
		examples := 0
		dir := t.TempDir() // of the log files in examples
		for line := range strings.Lines(text) {
			rest, ok := strings.CutPrefix(line, c.right)
			if !ok {
				continue
			}
			examples++
			line, _, _ = strings.Cut(rest, "`")
			if r := parse(t, strings.Fields(strings.ReplaceAll(line, "/var/log/", dir+"/")), nil, ""); r.code >= 0 {
				t.Errorf("%s: the right example %s is refused with %d:\n%s", c.page, line, r.code, r.stderr)
			}
		}
		if examples != known {
			t.Errorf("%s has %d right examples for %d flags", c.page, examples, known)
		}
	}
}
