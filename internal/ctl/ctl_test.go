package ctl

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// run runs a command line without input and without a server.
func run(args ...string) (stdout, stderr string, code int) {
	var out, err bytes.Buffer
	code = Run(Process{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err})
	return out.String(), err.String(), code
}

func TestSnapshotFile(t *testing.T) {
	s := newStage(t)
	file := filepath.Join(s.tmp, "snapshot.db")
	save := func(endpoint string) int {
		_, _, code := run("snapshot", "save", file, "--endpoints="+endpoint)
		return code
	}

	// The follower's stream ends early.
	if code := save(s.other.addr); code != exitInterrupted {
		t.Errorf("save of an incomplete snapshot: exit code %d, want %d", code, exitInterrupted)
	}
	if files, err := os.ReadDir(s.tmp); err != nil || len(files) != 0 {
		t.Errorf("an incomplete snapshot left %v (%v), want nothing", files, err)
	}

	if code := save(s.leader.addr); code != exitOK {
		t.Fatalf("save: exit code %d", code)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := bytes.Repeat([]byte("etcd"), 256); len(got) != len(want)+32 || !bytes.Equal(got[:len(want)], want) {
		t.Errorf("file has %d bytes, want the %d of the database and 32 of its hash", len(got), len(want))
	}
	if files, err := os.ReadDir(s.tmp); err != nil || len(files) != 1 {
		t.Errorf("directory has %v (%v), want the snapshot alone", files, err)
	}
}

// TestHealthTable checks the only table whose width depends on the time of day, which no
// transcript can contain; it was compared with etcdctl's with diff.
func TestHealthTable(t *testing.T) {
	var out bytes.Buffer
	p := newPrinter("table", printerOptions{stdout: &out})
	err := p.endpointHealth([]endpointHealth{
		{Endpoint: "127.0.0.1:2379", Health: true, Took: "1.234567ms"},
		{Endpoint: "127.0.0.1:22379", Took: "5.000901s", Error: "context deadline exceeded"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `
┌─────────────────┬────────┬────────────┬───────────────────────────┐
│    ENDPOINT     │ HEALTH │    TOOK    │           ERROR           │
├─────────────────┼────────┼────────────┼───────────────────────────┤
│  127.0.0.1:2379 │   true │ 1.234567ms │                           │
│ 127.0.0.1:22379 │  false │  5.000901s │ context deadline exceeded │
└─────────────────┴────────┴────────────┴───────────────────────────┘
`[1:]
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestStatusOfEmptyDatabase(t *testing.T) {
	rows := endpointStatusRows([]endpointStatus{{Endpoint: "a", Status: (*clientv3.StatusResponse)(&pb.StatusResponse{})}})
	if got := rows[0][6]; got != "0%" {
		t.Errorf("percentage of nothing: %q, want 0%%", got)
	}
}

func TestNestedTxnJSON(t *testing.T) {
	inner := &pb.TxnResponse{Succeeded: true, Responses: []*pb.ResponseOp{
		{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}},
	}}
	outer := &pb.TxnResponse{Responses: []*pb.ResponseOp{
		{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: inner}},
	}}
	var out bytes.Buffer
	p := newPrinter("json", printerOptions{stdout: &out})
	if err := p.txn((*clientv3.TxnResponse)(outer)); err != nil {
		t.Fatal(err)
	}
	want := `{"responses":[{"Response":{"response_txn":{"succeeded":true,"responses":[{"Response":{"response_put":{}}}]}}}]}` + "\n"
	if out.String() != want {
		t.Errorf("got %swant %s", out.String(), want)
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	a := &app{}
	for cmd, todo := a.rootCommand(), a.rootCommand().Commands(); cmd != nil; {
		if cmd.Name() != "help" && !strings.HasPrefix(cmd.Example, "  ") {
			t.Errorf("%q has no example", cmd.CommandPath())
		}
		if cmd.Short == "" {
			t.Errorf("%q has no description", cmd.CommandPath())
		}
		if len(todo) == 0 {
			break
		}
		cmd = todo[0]
		todo = append(todo[1:], cmd.Commands()...)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		out, stderr, code := run("completion", shell)
		if code != 0 || !strings.Contains(out, "etcdctl") {
			t.Errorf("completion %s: exit code %d, %d bytes, standard error %q", shell, code, len(out), stderr)
		}
	}
	out, _, _ := run("__complete", "get", "--sort-by", "")
	if want := "CREATE\nKEY\nMODIFY\nVALUE\nVERSION\n"; !strings.HasPrefix(out, want) {
		t.Errorf("completion of --sort-by: %q, want %q first", out, want)
	}
}

func TestSplitWords(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{`get foo`, []string{"get", "foo"}},
		{`  put  foo   "two words" `, []string{"put", "foo", "two words"}},
		{`put foo 'it is "so"'`, []string{"put", "foo", `it is "so"`}},
		{`put "tab\there" ""`, []string{"put", "tab\there", ""}},
		{`put a --lease=12`, []string{"put", "a", "--lease=12"}},
		{``, nil},
	} {
		got, err := splitWords(c.line)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("splitWords(%q) = %q, %v; want %q", c.line, got, err, c.want)
		}
	}
	if got, err := splitWords(`put "\q"`); err == nil {
		t.Errorf(`splitWords of a bad escape = %q, want an error`, got)
	}
}

func FuzzTxnLines(f *testing.F) {
	for _, s := range []string{`value("foo") = "bar"`, `lease("k") > "1f"`, `put foo "a b" --lease=1f`, `get 'x`, `"\xff"`, `(`} {
		f.Add(s)
	}
	r := &txnReader{app: &app{Process: Process{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}}}}
	f.Fuzz(func(t *testing.T, line string) {
		parseCompare(line)
		if words, err := splitWords(line); err == nil && len(words) > 0 && !strings.HasPrefix(words[0], "d") {
			r.request(line) // but not del, which waits before it deletes a range
		}
	})
}

// Help for a command that does not exist goes to standard error, as etcdctl's does.
func TestHelpForUnknownCommand(t *testing.T) {
	stdout, stderr, code := run("help", "nosuch")
	if stdout != "" || !strings.HasPrefix(stderr, "Unknown help topic [`nosuch`]\nUsage:\n") || code != 0 {
		t.Errorf("exit code %d, standard output %q, standard error %q", code, stdout, stderr)
	}
	if stdout, stderr, _ := run("help", "put"); !strings.Contains(stdout, "etcdctl put") || stderr != "" {
		t.Errorf("help put: standard output %q, standard error %q", stdout, stderr)
	}
}
