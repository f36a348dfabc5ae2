package moving

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// logLines are the log lines of a tool, without time and caller, and the line of an error.
func logLines(r result, dir string) string {
	var out strings.Builder
	for line := range strings.Lines(strings.ReplaceAll(r.stderr, dir, "DIR")) {
		line = strings.TrimSuffix(line, "\n")
		words := strings.Split(line, "\t") // time, level, perhaps the logger, caller, message, perhaps fields
		switch {
		case strings.HasPrefix(line, "Error: "):
		case len(words) < 4:
			continue // of a stack trace
		case words[2] == "bbolt":
			continue // opening and closing of the database file, which ours does not do
		default:
			line = strings.Join(append(words[1:2], words[3:]...), " ")
		}
		for _, n := range numbers {
			line = n.ReplaceAllString(line, "${1}N")
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}

// These numbers depend on the layout of the file, or on the machine.
var numbers = []*regexp.Regexp{
	regexp.MustCompile(`("current-db-size(?:-in-use)?(?:-bytes)?(?:-diff)?": )(?:-?\d+|"[^"]*")`),
	regexp.MustCompile(`("took": )"[^"]*"`),
}

// Our etcdutl logs the same as etcd's for the same work.
func TestLogLines(t *testing.T) {
	t.Parallel()
	three := []string{"--name=m1", "--initial-advertise-peer-urls=http://127.0.0.1:1001",
		"--initial-cluster=m1=http://127.0.0.1:1001,m2=http://127.0.0.1:1002,m3=http://127.0.0.1:1003,m3=http://127.0.0.1:1004"}
	migrate := func(target string, more ...string) []string {
		return append([]string{"migrate", "--data-dir=DIR/data", "--target-version=" + target}, more...)
	}
	for name, binary := range map[string]string{"3.7": real37, "3.6": real36, "3.5": real35} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, binary)
			fill(t, m, 10)
			file := filepath.Join(t.TempDir(), "s.db")
			done(t, realctl, "--endpoints="+m.ClientAddr(), "snapshot", "save", file)
			end(t, m, false)
			// The first lines of both tools are equal, including their order.
			var dirs [2]string
			for i := range dirs {
				dirs[i] = t.TempDir()
				must(t, os.CopyFS(filepath.Join(dirs[i], "data"), os.DirFS(m.DataDir())))
				text, err := os.ReadFile(file)
				must(t, err)
				must(t, os.WriteFile(filepath.Join(dirs[i], "s.db"), text, 0o600))
			}
			for _, args := range [][]string{
				{"snapshot", "restore", "DIR/s.db", "--data-dir=DIR/one"},
				append([]string{"snapshot", "restore", "DIR/s.db", "--data-dir=DIR/three", "--initial-memory-map-size=1048576"}, three...),
				{"snapshot", "restore", "DIR/s.db", "--data-dir=DIR/bumped", "--wal-dir=DIR/wal", "--bump-revision=1000", "--mark-compacted"},
				{"snapshot", "restore", "DIR/data/member/snap/db", "--data-dir=DIR/copied", "--skip-hash-check"},
				{"snapshot", "restore", "DIR/data/member/snap/db", "--data-dir=DIR/copied2"},
				{"snapshot", "restore", "DIR/none.db", "--data-dir=DIR/none"},
				{"snapshot", "restore", "DIR/s.db", "--data-dir=DIR/one"},
				{"snapshot", "restore", "DIR/s.db", "--data-dir=DIR/other", "--wal-dir=DIR/wal"},
				{"snapshot", "restore", "DIR/s.db", "--data-dir=DIR/other", "--name=other"},
				{"snapshot", "restore", "DIR/s.db", "--data-dir=DIR/other", "--bump-revision=1"},
				{"snapshot", "restore"},
				{"snapshot", "status", "DIR/s.db"},
				{"snapshot", "status", "DIR/none.db"},
				{"hashkv", "DIR/none.db"},
				{"hashkv", "DIR/s.db", "--rev=3"},
				{"defrag", "--data-dir=DIR/data"},
				{"defrag", "--data-dir=DIR/nowhere"},
				{"migrate", "--data-dir=DIR/nowhere", "--target-version=3.6"},
				{"version"},
				migrate("3.7"), migrate("3.4"), migrate("3.8"), migrate("4.0"), migrate("x"), migrate("3.5.1"),
				migrate("3.6"), migrate("3.6"), migrate("3.5"), migrate("3.5"), migrate("3.6"), migrate("3.7"),
				migrate("3.8", "--force"), migrate("3.7"), migrate("3.5", "--force"), migrate("4.0", "--force"), migrate("3.6", "--force"),
			} {
				if name == "3.5" && slices.Equal(args, migrate("3.6")) {
					break // real etcdutl panics at requests of etcd 3.5 in the log
				}
				var got [2]string
				for i, program := range []string{etcdutl, realutl} {
					var line []string
					for _, a := range args {
						line = append(line, strings.ReplaceAll(a, "DIR", dirs[i]))
					}
					r := tool(t, program, line...)
					got[i] = logLines(r, dirs[i])
					if r.code != 0 {
						got[i] += "failed"
					}
				}
				if got[0] != got[1] {
					t.Errorf("etcdutl %q:\n%s\nreal etcdutl:\n%s", args, got[0], got[1])
				}
			}
		})
	}
}

// A backup logs what etcdctl 3.5 logs about it, each message at least once.
func TestBackupLogLines(t *testing.T) {
	t.Parallel()
	m := start(t, real35, "--enable-v2")
	v2(t, m, "PUT", "/a", value("1"))
	fill(t, m, 10)
	end(t, m, false)
	for _, v3 := range []string{"--with-v3=true", "--with-v3=false"} {
		args := []string{"backup", "--data-dir", m.DataDir(), v3, "--backup-dir"}
		real := tool(t, "/usr/bin/env", append([]string{"ETCDCTL_API=2", "../bin/etcdctl35"}, append(args, t.TempDir())...)...)
		ours := tool(t, etcdutl, append(args, t.TempDir())...)
		if a, b := kinds(ours), kinds(real); !slices.Equal(a, b) || len(a) < 3 {
			t.Errorf("%s:\n%q\netcdctl 3.5:\n%q", v3, a, b)
		}
	}
}

// kinds are the log lines of a tool without their fields, each once.
func kinds(r result) []string {
	var out []string
	for line := range strings.Lines(logLines(r, "nowhere")) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " {")
		out = append(out, line)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
