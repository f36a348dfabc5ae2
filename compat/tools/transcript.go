package tools

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A transcript is a list of commands and what they print:
//
//	env NAME=VALUE     a variable for the next command
//	< LINE             a line of its standard input
//	hold               leave its standard input open
//	brief              of its standard output, only the first line: what follows is help
//	$ get foo          the command. $EP1 and $EP2 are servers, $TMP is a directory, $id1 is the
//	                   first ID that was printed, $id2 the second
//	& NAME get foo     the same, in the background
//	until NAME TEXT    wait until a background command has printed TEXT (\n is a newline)
//	type NAME LINE     a line for the standard input of a background command
//	signal NAME        interrupt it
//	finish NAME        wait until it has ended; what it printed follows
//	1| TEXT            a line of standard output
//	1" "TEXT"          standard output that is not lines of text, quoted
//	2| TEXT            a line of standard error, logs without time and place; 2" as 1"
//	= 4                the exit code, if it is not 0

// limit is the upper bound of a command, generous because the machine may be busy.
const limit = 60 * time.Second

// stage is the environment of one transcript.
type stage struct {
	binary  string   // etcdctl
	env     []string // for every command
	servers []string // host:port
	scheme  string   // before host:port in ETCDCTL_ENDPOINTS
	known   []string // IDs that are the same in every run, in all notations
	tmp     string

	names      map[uint64]string // of IDs that were printed
	background map[string]*process
}

// command holds what the lines before a command specify.
type command struct {
	env   []string
	input []string
	hold  bool
	brief bool
}

// perform runs a transcript's commands and returns it with their results. On an error the returned transcript
// ends with the reason.
func (s *stage) perform(script string) (transcript string, err error) {
	s.names, s.background = map[uint64]string{}, map[string]*process{}
	defer func() {
		for _, p := range s.background {
			p.end()
		}
	}()
	var out strings.Builder
	var cue command
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		mark, rest, _ := strings.Cut(line, " ")
		name, text, _ := strings.Cut(rest, " ")
		switch mark {
		case "1|", `1"`, "2|", `2"`, "=":
			continue // the result of the last recording
		}
		out.WriteString(line + "\n")
		switch mark {
		case "env":
			cue.env = append(cue.env, s.expand(rest))
		case "<":
			cue.input = append(cue.input, s.expand(rest))
		case "hold":
			cue.hold = true
		case "brief":
			cue.brief = true
		case "$":
			p, err := s.start(cue, rest)
			if err != nil {
				return out.String(), err
			}
			cue = command{}
			out.WriteString(s.result(p))
		case "&":
			p, err := s.start(cue, text)
			if err != nil {
				return out.String(), err
			}
			cue = command{}
			s.background[name] = p
		case "until", "type", "signal", "finish":
			p := s.background[name]
			if p == nil {
				return out.String(), fmt.Errorf("%q: there is no such command", line)
			}
			switch mark {
			case "until":
				if err := p.stdout.waitFor(strings.ReplaceAll(s.expand(text), `\n`, "\n")); err != nil {
					return out.String() + s.result(p.end()), fmt.Errorf("%q: %w", line, err)
				}
			case "type":
				if _, err := io.WriteString(p.stdin, s.expand(text)+"\n"); err != nil {
					return out.String(), fmt.Errorf("%q: %w", line, err)
				}
			case "signal":
				if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
					return out.String(), fmt.Errorf("%q: %w", line, err)
				}
			case "finish":
				out.WriteString(s.result(p))
				delete(s.background, name)
			}
		}
	}
	return out.String(), nil
}

// ownEndpoints reports whether a command names the server itself.
var ownEndpoints = regexp.MustCompile(`--endpoint|--peers|-C |ETCDCTL_(ENDPOINT|PEERS)`)

// start starts a command, which is killed at the limit.
func (s *stage) start(c command, line string) (*process, error) {
	p := &process{stdout: newScreen(), done: make(chan struct{}), brief: c.brief}
	p.cmd = exec.Command(s.binary, splitWords(s.expand(line))...)
	p.cmd.Dir = s.tmp
	p.cmd.Env = slices.Concat(s.env, c.env)
	if !ownEndpoints.MatchString(line + " " + strings.Join(c.env, " ")) {
		p.cmd.Env = append(p.cmd.Env, "ETCDCTL_ENDPOINTS="+s.scheme+s.servers[0])
	}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "ETCDCTL_") {
			p.cmd.Env = append(p.cmd.Env, e)
		}
	}
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(limit, func() { p.cmd.Process.Kill() })
	go func() {
		_ = p.cmd.Wait() // the result is in ProcessState
		timer.Stop()
		close(p.done)
	}()
	for _, l := range c.input {
		_, _ = io.WriteString(p.stdin, l+"\n") // a command that exited needs no more
	}
	if !c.hold {
		p.stdin.Close()
	}
	return p, nil
}

// process is a command that was started.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *screen
	stderr bytes.Buffer // read when done is closed
	done   chan struct{}
	brief  bool
}

func (p *process) end() *process {
	p.cmd.Process.Kill() // unless it has exited
	<-p.done
	return p
}

// result waits for a command and returns its part of the transcript.
func (s *stage) result(p *process) string {
	<-p.done
	var out strings.Builder
	stdout := p.stdout.String()
	if first, _, more := strings.Cut(stdout, "\n"); p.brief && more {
		stdout = first + "\n"
	}
	out.WriteString(lines("1", s.conceal(stdout)))
	out.WriteString(lines("2", s.conceal(logs(p.stderr.String()))))
	code := p.cmd.ProcessState.ExitCode()
	if w := p.cmd.ProcessState.Sys().(syscall.WaitStatus); w.Signaled() {
		code = 128 + int(w.Signal())
	}
	if code != 0 {
		fmt.Fprintf(&out, "= %d\n", code)
	}
	return out.String()
}

// expand replaces the names of addresses and IDs by their values.
func (s *stage) expand(text string) string {
	for i, addr := range s.servers {
		text = strings.ReplaceAll(text, fmt.Sprintf("$EP%d", i+1), addr)
	}
	text = strings.ReplaceAll(text, "$TMP", s.tmp)
	for i := len(s.names); i > 0; i-- { // $id12 before $id1
		for id, name := range s.names {
			if name == fmt.Sprintf("$id%d", i) {
				text = strings.ReplaceAll(text, name, fmt.Sprintf("%x", id))
			}
		}
	}
	return text
}

// screen is a writer that others can watch.
type screen struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed, and replaced, by every write
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

func (s *screen) waitFor(text string) error {
	deadline := time.After(limit)
	for {
		s.mu.Lock()
		seen, changed := strings.Contains(s.text.String(), text), s.changed
		s.mu.Unlock()
		if seen {
			return nil
		}
		select {
		case <-changed:
		case <-deadline:
			return fmt.Errorf("waited for %q, have %q", text, s.String())
		}
	}
}

var word = regexp.MustCompile(`'[^']*'|"[^"]*"|[^'"\s]\S*`)

// splitWords splits a command line at spaces, except in quotes.
func splitWords(line string) []string {
	words := word.FindAllString(line, -1)
	for i, w := range words {
		if w[0] == '\'' || w[0] == '"' {
			words[i] = w[1 : len(w)-1]
		}
	}
	return words
}
