package ctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/diff"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A transcript is a list of commands with what they are given, what they ask
// the server, what they print and how they end:
//
//	env NAME=VALUE      a variable for the next command
//	alarms              the server has alarms, from here on
//	< LINE              a line of standard input
//	wait TEXT           hold the following input back until TEXT, in which \n is
//	                    a newline, is printed
//	end TEXT            the same, and have the server end the watches
//	hold                leave standard input open
//	signal TEXT         as wait, and then interrupt the command
//	$ get foo -w json   the command; $EP1 is the leader, $EP2 a follower,
//	                    $DOWN an address where nobody listens, $TMP a directory
//	> KV/Range {...}    a request that the server received
//	1| TEXT             a line of standard output
//	1" "TEXT"           standard output that is not lines of text, quoted
//	2| TEXT             a line of standard error; logs without time and place
//	= 4                 the exit code, if it is not 0
//
// The transcripts in testdata/etcdctl were recorded from etcdctl itself,
// against the same server:
//
//	go test ./internal/ctl -run Transcripts/etcdctl -etcdctl=/path/to/etcdctl
//
// Those in testdata/own show where this tool says more than etcdctl; -update
// rewrites them.
var (
	flagEtcdctl = flag.String("etcdctl", "", "record testdata/etcdctl from this binary instead of testing")
	flagUpdate  = flag.Bool("update", false, "rewrite testdata/own instead of testing")
)

func TestTranscripts(t *testing.T) {
	for _, dir := range []string{"etcdctl", "own"} {
		files, err := filepath.Glob(filepath.Join("testdata", dir, "*.txt"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no transcripts in testdata/%s (%v)", dir, err)
		}
		for _, file := range files {
			t.Run(dir+"/"+filepath.Base(file), func(t *testing.T) {
				t.Parallel()
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				s := newStage(t)
				if dir == "etcdctl" {
					s.binary = *flagEtcdctl
				}
				got := s.perform(string(want))
				if s.binary != "" || dir == "own" && *flagUpdate {
					if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
					return
				}
				if got != string(want) {
					t.Errorf("%s", diff.Diff(file, want, "got", []byte(got)))
				}
			})
		}
	}
}

// stage is the environment in which a transcript runs.
type stage struct {
	t      *testing.T
	leader *fakeServer
	other  *fakeServer
	log    *requestLog
	tmp    string
	binary string // empty: Run in this process
}

func newStage(t *testing.T) *stage {
	log := &requestLog{}
	return &stage{t: t, log: log, tmp: t.TempDir(),
		leader: startFake(t, fakeLeader, log), other: startFake(t, fakeFollower, log)}
}

const downAddr = "127.0.0.1:1" // tcpmux, which no machine runs

func (s *stage) expand(text string) string {
	return strings.NewReplacer("$EP1", s.leader.addr, "$EP2", s.other.addr, "$DOWN", downAddr, "$TMP", s.tmp).Replace(text)
}

// conceal is the inverse of expand. Names of addresses are padded to the addresses' width,
// for tables.
func (s *stage) conceal(text string) string {
	return strings.NewReplacer(
		s.leader.addr, "$EP1"+strings.Repeat("_", len(s.leader.addr)-4),
		s.other.addr, "$EP2"+strings.Repeat("_", len(s.other.addr)-4),
		s.tmp, "$TMP").Replace(text)
}

// perform runs a transcript's commands and returns it with their actual output.
func (s *stage) perform(script string) string {
	var out strings.Builder
	var cue command
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		mark, rest, _ := strings.Cut(line, " ")
		switch mark {
		case ">", "1|", `1"`, "2|", "=":
			continue // the output of the last recording
		case "env":
			cue.env = append(cue.env, rest)
		case "alarms":
			s.leader.alarms = []*pb.AlarmMember{
				{MemberID: fakeLeader, Alarm: pb.AlarmType_NOSPACE},
				{MemberID: fakeFollower, Alarm: pb.AlarmType_CORRUPT},
			}
		case "<", "wait", "end", "hold", "signal":
			cue.input = append(cue.input, line)
		}
		out.WriteString(line + "\n")
		if mark == "$" {
			cue.words = splitShell(s.t, s.expand(rest))
			out.WriteString(s.run(cue))
			cue = command{}
		}
	}
	return out.String()
}

// splitShell splits a command line at spaces, except in quotes.
func splitShell(t *testing.T, line string) []string {
	words, err := splitWords(line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return words
}

type command struct {
	env   []string
	input []string // lines that begin with <, wait, end, hold and signal
	words []string
}

// run runs one command and returns its part of the transcript.
func (s *stage) run(c command) string {
	s.t.Helper()
	env := c.env
	if !slices.ContainsFunc(c.words, func(w string) bool { return strings.HasPrefix(w, "--endpoints") }) {
		env = append(env, "ETCDCTL_ENDPOINTS="+s.leader.addr)
	}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "ETCDCTL_") {
			env = append(env, e)
		}
	}

	stdout, stderr := newScreen(), newScreen()
	in, feed := io.Pipe()
	s.leader.end.Store(newBeacon())
	if len(c.words) > 0 && c.words[0] == "lease" {
		s.leader.ttl.Store(0) // this lease does not belong to a lock
	}
	ended := make(chan struct{})
	fed := make(chan error, 1)
	interrupt := make(chan os.Signal, 1)
	go func() { fed <- s.feed(feed, c.input, stdout, interrupt, ended) }()
	defer in.Close()

	code := 0
	if s.binary == "" {
		notify := func(c chan<- os.Signal, _ ...os.Signal) {
			go func() {
				select {
				case sig := <-interrupt:
					c <- sig
				case <-ended:
				}
			}()
		}
		code = Run(Process{Args: c.words, Env: env, Stdin: in, Stdout: stdout, Stderr: stderr, Notify: notify})
	} else {
		cmd := exec.Command(s.binary, c.words...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, stdout, stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			s.t.Fatal(err)
		}
		go func() {
			io.Copy(stdin, in)
			stdin.Close()
		}()
		if err := cmd.Start(); err != nil {
			s.t.Fatal(err)
		}
		go func() {
			select {
			case sig := <-interrupt:
				cmd.Process.Signal(sig)
			case <-time.After(20 * time.Second):
				s.t.Errorf("%q does not end", c.words)
				cmd.Process.Kill()
			case <-ended:
			}
		}()
		if err := cmd.Wait(); err != nil {
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				s.t.Fatal(err)
			}
			code = exit.ExitCode()
		}
	}
	in.Close()
	close(ended)
	if err := <-fed; err != nil {
		s.t.Errorf("%q: %v", c.words, err)
	}

	var out strings.Builder
	for _, r := range s.log.take() {
		fmt.Fprintf(&out, "> %s\n", s.conceal(r))
	}
	out.WriteString(s.lines("1", stdout.String()))
	out.WriteString(s.lines("2", logs(stderr.String())))
	if code != 0 {
		fmt.Fprintf(&out, "= %d\n", code)
	}
	return out.String()
}

// feed writes standard input. A command that has ended needs no more of it.
func (s *stage) feed(w *io.PipeWriter, input []string, stdout *screen, interrupt chan<- os.Signal, ended <-chan struct{}) error {
	defer w.Close()
	for _, line := range input {
		mark, text, _ := strings.Cut(line, " ")
		switch mark {
		case "wait", "end", "signal":
			text = strings.ReplaceAll(text, `\n`, "\n")
			if !stdout.waitFor(text, 10*time.Second) {
				s.leader.end.Load().send() // otherwise the command would never return
				interrupt <- os.Interrupt
				return fmt.Errorf("waited for %q, have %q", text, stdout.String())
			}
			switch mark {
			case "end":
				s.leader.end.Load().send()
			case "signal":
				interrupt <- os.Interrupt
			}
		case "hold":
			<-ended
		default:
			if _, err := io.WriteString(w, text+"\n"); err != nil {
				return nil
			}
		}
	}
	return nil
}

var durations = regexp.MustCompile(`(took(?:"?:"| = | )|"Took" : )[0-9.]+(?:ns|µs|ms|s)`)

// lines formats text as lines of a transcript.
func (s *stage) lines(stream, text string) string {
	text = s.conceal(durations.ReplaceAllString(text, "${1}DURATION"))
	if text == "" {
		return ""
	}
	if !strings.HasSuffix(text, "\n") || strings.ContainsFunc(text, func(r rune) bool {
		return r == '\uFFFD' || r < ' ' && r != '\n' && r != '\t' || r == 0x7f
	}) {
		return fmt.Sprintf("%s\" %q\n", stream, text)
	}
	var out strings.Builder
	for line := range strings.Lines(text) {
		out.WriteString(stream + "| " + line)
	}
	return out.String()
}

// logs keeps the part of JSON log lines that does not change from run to run.
func logs(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		var l struct{ Level, Logger, Msg string }
		if strings.HasPrefix(line, `{"level"`) && json.Unmarshal([]byte(line), &l) == nil {
			line = fmt.Sprintf("log %s %s: %s\n", l.Level, l.Logger, l.Msg)
		}
		out.WriteString(line)
	}
	return out.String()
}

// screen is a writer whose content other goroutines can wait for.
type screen struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced by every write
}

func newScreen() *screen { return &screen{changed: make(chan struct{})} }

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) waitFor(text string, limit time.Duration) bool {
	deadline := time.After(limit)
	for {
		s.mu.Lock()
		seen, changed := strings.Contains(s.text.String(), text), s.changed
		s.mu.Unlock()
		if seen {
			return true
		}
		select {
		case <-changed:
		case <-deadline:
			return false
		}
	}
}
