package handbook

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What differs between runs is replaced. 0 and 1 stay, because they mean no and yes.
var volatile = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d[.\dZ+:-]*`), "TIME"},
	{regexp.MustCompile(`\b[0-9a-f]{8,64}\b`), "NUMBER"},
	{regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+(:\d+)?\b`), "ADDRESS"},
	{regexp.MustCompile(`\b\d+(\.\d+)?(ns|µs|ms|s|m\d+(\.\d+)?s)\b`), "DURATION"},
	{regexp.MustCompile(`\b\d+(\.\d+)? ([kMG]?i?B)\b`), "SIZE"},
	{regexp.MustCompile(`\b\d+(\.\d+)?%`), "PERCENT"},
	{regexp.MustCompile(`\b\d+(\.\d+)+(e[+-]\d+)?\b`), "NUMBER"},
	{regexp.MustCompile(`\b\d+(e[+-]?\d+)?\b`), "NUMBER"},
	{regexp.MustCompile(`[─-╿ ]+`), " "},
}

// list matches a word with commas: the order of a list follows random ids.
var list = regexp.MustCompile(`[^\s"]+,[^\s"]+`)

// shape is a line without its volatile parts.
func shape(line string) string {
	line = list.ReplaceAllStringFunc(line, func(s string) string {
		items := strings.Split(s, ",")
		slices.Sort(items)
		return strings.Join(items, ",")
	})
	for _, v := range volatile {
		line = v.what.ReplaceAllStringFunc(line, func(s string) string {
			if s == "0" || s == "1" {
				return s
			}
			return v.by
		})
	}
	return strings.TrimSpace(line)
}

// compare returns the lines that the page shows and the command did not print. For a page without a line "...",
// which shows everything, more returns the lines printed in addition.
func compare(shows []string, printed string) (missing, more []string) {
	got := lines(printed)
	open := false
	for _, want := range shows {
		if want == "..." {
			open = true
			continue
		}
		i := slices.IndexFunc(got, func(l string) bool { return alike(want, l) })
		if i < 0 {
			missing = append(missing, want)
			continue
		}
		got = slices.Delete(got, i, i+1)
	}
	if open {
		return missing, nil
	}
	return missing, slices.DeleteFunc(got, func(l string) bool { return shape(l) == "" })
}

// alike reports whether a line has the shape that a page shows. Of a log line the page shows some of the fields.
func alike(want, got string) bool {
	if !strings.HasPrefix(want, "{") {
		return shape(want) == shape(got)
	}
	var w, g map[string]any
	if json.Unmarshal([]byte(want), &w) != nil || json.Unmarshal([]byte(got), &g) != nil {
		return shape(want) == shape(got)
	}
	for k, v := range w {
		if there, ok := g[k]; !ok || shape(fmt.Sprint(v)) != shape(fmt.Sprint(there)) {
			return false
		}
	}
	return true
}

func TestShape(t *testing.T) {
	for _, c := range []struct {
		shows, printed string
		same           bool
	}{
		{"etcd_server_has_leader 1", "etcd_server_has_leader 1", true},
		{"etcd_server_has_leader 1", "etcd_server_has_leader 0", false},
		{"bytes 25000", "bytes 2.5e+06", true},
		{"│ http://10.0.0.1:2379 │ 8e9e05c52164694d │ 20 kB │ true │", "│ http://10.0.0.2:2379 │ aaaaaaaaaaaa0001 │   3.5 MB │ true │", true},
		{"│ http://10.0.0.1:2379 │ true │", "│ http://10.0.0.1:2379 │ false │", false},
		{`{"level":"warn","msg":"a","took":"1.5s"}`, `{"level":"warn","ts":"2026","msg":"a","took":"200ms","more":2}`, true},
		{`{"level":"warn","msg":"a"}`, `{"level":"warn","msg":"b"}`, false},
		{"OK\n...", "OK\nand more", true},
		{"OK", "OK\nand more", false},
	} {
		missing, more := compare(lines(c.shows), c.printed)
		if (len(missing)+len(more) == 0) != c.same {
			t.Errorf("%q and %q: missing %q, more %q", c.shows, c.printed, missing, more)
		}
	}
}
