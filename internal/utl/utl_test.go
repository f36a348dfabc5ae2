package utl

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func run(args ...string) (stdout, stderr string, code int) {
	var out, err bytes.Buffer
	code = Run(Process{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err})
	return out.String(), err.String(), code
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		args           []string
		stdout, stderr string // all of it, or with "..." at the end its beginning
		code           int
	}{
		{[]string{"version"}, "etcdutl version: 3.7.3\nAPI version: 3.7\n", "", 0},
		{[]string{"ver", "-w", "json"}, "etcdutl version: 3.7.3\nAPI version: 3.7\n", "", 0},
		{nil, "Works on the files of an etcd, without a server.\n\nUsage:\n  etcdutl [command]\n...", "", 0},
		{[]string{"frob"}, "", "Error: unknown command \"frob\" for \"etcdutl\"\nRun 'etcdutl --help' for usage.\n", 1},
		{[]string{"help", "nosuch"}, "", "Unknown help topic [`nosuch`]\nUsage:\n  etcdutl [command]\n...", 0},
		{[]string{"version", "--frob"}, "", "Error: unknown flag: --frob\nUsage:\n  etcdutl version [flags]\n...", 1},
		{[]string{"snapshot", "status"}, "", "Error: snapshot status requires exactly one argument\n", 128},
		{[]string{"snapshot", "status", "utl.go", "-w", "xml"}, "", "Error: unsupported output format\n", 4},
		{[]string{"snapshot", "status", "utl.go", "-w", "protobuf"}, "", "Error: protobuf not supported as output format\n", 4},
		{[]string{"snapshot", "status", "."}, "", "Error: . is neither a database nor a data directory\n", 1},
		{[]string{"hashkv", "utl.go"}, "", "Error: snapshot: corrupt file utl.go at offset 0: not a bbolt database: no valid meta page\n", 1},
		{[]string{"migrate", "--data-dir", "x"}, "", "Error: required flag(s) \"target-version\" not set\nUsage:\n...", 1},
		{[]string{"migrate", "--data-dir", "x", "--to-etcd"}, "", "Error: stat x/member/snap/db: no such file or directory\n", 1},
		{[]string{"migrate", "--data-dir", "x", "--to-etcd", "--target-version", "3.4"}, "", "Error: target version \"3.4\" not supported. Minimal \"3.5\"\n", 128},
		{[]string{"migrate", "--data-dir", "x", "--target-version", "a.b"}, "", "Error: failed to parse target version: ...", 128},
		{[]string{"defrag", "--data-dir", "x"}, "", "Error: Failed to defragment etcd data[x] (stat x/member/snap/db: no such file or directory)\n", 1},
		{[]string{"completion"}, "", "Error: accepts 1 arg(s), received 0\nUsage:\n...", 1},
		{[]string{"completion", "tcsh"}, "", "Error: invalid argument \"tcsh\" for \"etcdutl completion\"\nUsage:\n...", 1},
	} {
		stdout, stderr, code := run(c.args...)
		if !matches(stdout, c.stdout) || !matches(stderr, c.stderr) || code != c.code {
			t.Errorf("etcdutl %q:\nexit code %d, want %d\nstandard output\n%s\nwant\n%s\nstandard error\n%s\nwant\n%s",
				c.args, code, c.code, stdout, c.stdout, stderr, c.stderr)
		}
	}
}

func matches(got, want string) bool {
	if start, ok := strings.CutSuffix(want, "..."); ok {
		return strings.HasPrefix(got, start)
	}
	return got == want
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		stdout, stderr, code := run("completion", shell)
		if code != 0 || !strings.Contains(stdout, "etcdutl") {
			t.Errorf("completion %s: exit code %d, %d bytes, standard error %q", shell, code, len(stdout), stderr)
		}
	}
}

func TestSuggestions(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"snapshot", "restroe", "f"}, `Did you mean "etcdutl snapshot restore"?`},
		{[]string{"snapshot", "status", "--write-uot=json"}, "Did you mean --write-out?"},
		{[]string{"snapshto"}, "snapshot"},
	} {
		var out, errs bytes.Buffer
		Run(Process{Args: c.args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs})
		if !strings.Contains(errs.String(), c.want) {
			t.Errorf("etcdutl %v says %q, want something with %q", c.args, errs.String(), c.want)
		}
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	todo := []*cobra.Command{(&app{}).rootCommand()}
	for len(todo) > 0 {
		cmd := todo[0]
		todo = append(todo[1:], cmd.Commands()...)
		if !strings.HasPrefix(cmd.Example, "  ") || cmd.Short == "" {
			t.Errorf("%q has no example or no description", cmd.CommandPath())
		}
	}
}
