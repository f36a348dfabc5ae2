package tools

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

var (
	etcdFlag = flag.String("etcd", "", "our server; empty: built from this tree")
	ctlFlag  = flag.String("etcdctl", "", "our etcdctl; empty: built from this tree")
	record   = flag.Bool("record", false, "write testdata from the real tools and real etcd instead of testing")
)

const (
	bin = "../bin"

	// With this token the server's ID is small, so that it is the first in every list of members.
	token = "tools-8944"
)

var ourServer, ourTool string

func TestMain(m *testing.M) {
	flag.Parse()
	// They wait more than they work.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tools")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if ourServer, err = child.Binary(*etcdFlag, "etcd", dir); err == nil {
		ourTool, err = child.Binary(*ctlFlag, "etcdctl", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// suite is the transcripts of one tool.
type suite struct {
	dir    string   // below testdata
	tool   string   // the real one
	server string   // the real one that it was recorded with
	ours   bool     // our tool prints the same
	v2     bool     // of the v2 API
	env    []string // of every command
}

var suites = []suite{
	{dir: "etcdctl37", tool: "etcdctl37", server: "etcd37", ours: true},
	{dir: "etcdctl35", tool: "etcdctl35", server: "etcd37"},
	{dir: "etcdctl34", tool: "etcdctl34", server: "etcd37"},
	{dir: "etcdctl35-v2", tool: "etcdctl35", server: "etcd35", ours: true, v2: true, env: []string{"ETCDCTL_API=2"}},
}

// Every tool prints the same, whichever server answers.
func TestTranscripts(t *testing.T) {
	for _, u := range suites {
		tool, server := filepath.Join(bin, u.tool), filepath.Join(bin, u.server)
		if _, err := os.Stat(tool); err != nil {
			if u.tool == "etcdctl34" {
				t.Logf("etcdctl 3.4 was not there, so nothing is shown about it (make -C compat etcdctl34 fetches it): %v", err)
				continue
			}
			t.Fatalf("%v (make -C compat builds it)", err)
		}
		transcripts, err := filepath.Glob(filepath.Join("testdata", u.dir, "*.txt"))
		if err != nil || len(transcripts) == 0 {
			t.Fatalf("no transcripts of %s (%v)", u.dir, err)
		}
		for _, file := range transcripts {
			name := u.dir + "/" + strings.TrimSuffix(filepath.Base(file), ".txt")
			if *record {
				t.Run(name, func(t *testing.T) { u.play(t, file, tool, server) })
				continue
			}
			t.Run(name+"/our server", func(t *testing.T) { t.Parallel(); u.play(t, file, tool, ourServer) })
			if u.ours {
				t.Run(name+"/our tool and real etcd", func(t *testing.T) { t.Parallel(); u.play(t, file, ourTool, server) })
				t.Run(name+"/our tool and server", func(t *testing.T) { t.Parallel(); u.play(t, file, ourTool, ourServer) })
			}
		}
	}
}

// play performs a transcript and compares, or records.
func (u suite) play(t *testing.T, file, tool, server string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	script := string(text)
	if tool, err = filepath.Abs(tool); err != nil {
		t.Fatal(err)
	}
	s := &stage{binary: tool, tmp: t.TempDir(), env: u.env}
	var flags []string
	if u.v2 {
		s.scheme = "http://"
		flags = []string{"--enable-v2"}
	}
	s.serve(t, server, flags...)
	if strings.Contains(script, "$EP2") {
		s.serve(t, server, flags...)
	}
	if u.v2 {
		s.settle(t)
	}
	got, err := s.perform(script)
	if err != nil {
		t.Fatalf("%v; so far:\n%s", err, got)
	}
	if *record {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != script {
		t.Errorf("%s", differences(t, file, got))
	}
}

// serve starts one more member. All have the same name and advertise the same peer URL, whatever their kind, and
// so have the same IDs.
func (s *stage) serve(t *testing.T, binary string, flags ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	m, err := harness.StartSingle(ctx, harness.Config{Binary: binary, Dir: t.TempDir(), Name: "m1", AdvertisePeerURL: "http://127.0.0.1:12380", Token: token, Args: flags})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	r, err := child.Dial(t, m.ClientAddr()).Cluster.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	s.servers = append(s.servers, m.ClientAddr())
	for _, id := range []uint64{r.Header.ClusterId, r.Header.MemberId} {
		s.known = append(s.known, fmt.Sprintf("%x", id), fmt.Sprintf("%016x", id), fmt.Sprint(id))
	}
}

// settle waits until the indexes of the v2 API of all servers are those of a newly founded cluster.
func (s *stage) settle(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for _, addr := range s.servers {
		for {
			answer, err := child.V2(limit, "GET", addr, "/", nil)
			if err == nil && answer.Index == 3 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the index is %d, not 3 (%v)", addr, answer.Index, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// differences is the output of diff.
func differences(t *testing.T, file, got string) string {
	t.Helper()
	other := filepath.Join(t.TempDir(), "got")
	if err := os.WriteFile(other, []byte(got), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("diff", "-u", file, other).CombinedOutput()
	if err == nil {
		t.Fatal("diff sees no difference where there is one")
	}
	return string(out)
}

// A transcript that differs from the server's answers does not pass.
func TestTranscriptsAreCompared(t *testing.T) {
	script := "$ get foo\n1| foo\n1| bar\n"
	s := &stage{binary: ourTool, tmp: t.TempDir()}
	s.serve(t, ourServer)
	start := time.Now()
	got, err := s.perform("$ put foo bar\n1| nothing\n" + script + "$ get foo -w xml\n& w watch foo --rev=1\nuntil w bar\nsignal w\nfinish w\n")
	if err != nil {
		t.Fatal(err)
	}
	want := "$ put foo bar\n1| OK\n" + script + "$ get foo -w xml\n2| Error: unsupported output format\n= 4\n" +
		"& w watch foo --rev=1\nuntil w bar\nsignal w\nfinish w\n1| PUT\n1| foo\n1| bar\n= 130\n"
	if got != want {
		t.Errorf("after %s got\n%swant\n%s", time.Since(start), got, want)
	}
}
