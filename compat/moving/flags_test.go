package moving

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"quorate/compat/harness"
)

var shownFlag = regexp.MustCompile(`(?m)^ +--([a-z0-9-]+)`)

// flagNames returns the flags that the help of a server shows.
func flagNames(t *testing.T, program string) (names []string) {
	t.Helper()
	r := tool(t, program, "--help")
	for _, m := range shownFlag.FindAllStringSubmatch(r.stdout+r.stderr, -1) {
		names = append(names, m[1])
	}
	if len(names) < 100 {
		t.Fatalf("the help of %s shows %d flags", program, len(names))
	}
	return names
}

// A member of ours whose unit has flags of ours goes back. The command names the flags that etcd stops at, all of
// them and no other, and the guide as well; with the rest of its flags, and variables of ours, etcd starts.
func TestFlagsThatEtcdLacks(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("../../internal/config/testdata/flags.txt")
	must(t, err)
	ours := flagNames(t, etcd)
	for line := range strings.Lines(string(file)) { // the aliases too, which the help does not show
		if f := strings.Fields(line); len(f) > 3 && !strings.HasPrefix(line, "#") && f[3] != "rejected" {
			ours = append(ours, f[0])
		}
	}
	slices.Sort(ours)
	ours = slices.Compact(ours)
	text, err := os.ReadFile(guide)
	must(t, err)
	for _, c := range []struct{ release, program string }{{"3.7", real37}, {"3.6", real36}} {
		m, err := harness.StartSingle(withLimit(t), harness.Config{Binary: etcd, Dir: t.TempDir(),
			Args: []string{"--scrub-interval=48h"}, Env: []string{"ETCD_DIGEST_CHECK_TIME=2s"}})
		must(t, err)
		t.Cleanup(func() { m.Kill() })
		version(t, m, "3.7", false)
		if c.release == "3.6" {
			done(t, etcdctl, "--endpoints="+m.ClientURL(), "downgrade", "enable", "3.6")
			version(t, m, "3.6", true)
		}
		end(t, m, false)
		said := done(t, etcdutl, "migrate", "--to-etcd", "--target-version", c.release, "--data-dir", m.DataDir())
		_, list, ok := strings.Cut(said, "'flag provided but not defined': ")
		if !ok {
			t.Fatalf("no word of the flags: %s", said)
		}
		patterns := strings.Split(strings.TrimSpace(list), ", ")
		used := map[string]bool{}
		for _, name := range ours {
			r := tool(t, c.program, "--"+name+"=1", "--version")
			lacks := strings.Contains(r.stdout+r.stderr, "flag provided but not defined")
			i := slices.IndexFunc(patterns, func(p string) bool { ok, _ := path.Match(p, "--"+name); return ok })
			if lacks != (i >= 0) {
				t.Errorf("etcd %s lacks --%s: %v; it is among %q: %v", c.release, name, lacks, patterns, i >= 0)
			}
			if i >= 0 {
				used[patterns[i]] = true
			}
		}
		for _, p := range patterns {
			if !used[p] {
				t.Errorf("%s is named, but no such flag is lacking in etcd %s", p, c.release)
			}
			if !strings.Contains(string(text), "`"+p+"`") {
				t.Errorf("%s does not name %s", filepath.Base(guide), p)
			}
		}
		m.SetArgs()
		become(t, m, c.program)
		end(t, m, false)
	}
}
