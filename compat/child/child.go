// Package child runs programs as child processes with exactly the arguments of a test, and reports how they
// exit.
//
// In: a program, its arguments, a directory. Out: its output as lines, its exit code, and the contents of a
// directory before and after. [harness.Member] starts servers that are expected to run; a [Process] may also be
// one that is expected to refuse to start.
//
// Invariant: every process is killed by its own process id and waited for, at the latest when its test ends, and
// it dies with the test binary.
package child

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Process is a program that was started. Its methods are safe for concurrent use.
type Process struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// Config says what to run.
type Config struct {
	Program string
	Args    []string
	Dir     string   // working directory; the output of each process is written next to it
	Env     []string // additional environment entries
}

// Start starts a program that runs until the test ends at the latest.
func Start(t testing.TB, c Config) *Process {
	t.Helper()
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := os.CreateTemp(filepath.Dir(filepath.Clean(c.Dir)), filepath.Base(c.Dir)+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the child has its own descriptor
	p := &Process{log: log.Name(), exited: make(chan struct{})}
	p.cmd = exec.Command(c.Program, c.Args...)
	p.cmd.Dir = c.Dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(withoutEtcd(os.Environ()), c.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", c.Program, err)
	}
	go func() {
		p.cmd.Wait() // the result is in ProcessState
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("the output of process %d ends with:\n%s", p.PID(), p.Tail(20))
		}
	})
	return p
}

// withoutEtcd drops ETCD_* entries, which would configure the child.
func withoutEtcd(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, e := range env {
		if !strings.HasPrefix(e, "ETCD_") && !strings.HasPrefix(e, "ETCDCTL_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			kept = append(kept, e)
		}
	}
	return kept
}

// Signal sends a signal. It does nothing if the process has exited.
func (p *Process) Signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(fmt.Sprintf("signal process %d: %v", p.PID(), err))
	}
}

// Kill kills the process and waits for it.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.exited
}

// PID is the process id; it stays valid after the process has exited.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the process has exited.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running reports whether the process is still running.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Wait waits until the process has exited and returns its exit code as a shell shows it: 128 + n for an exit by
// signal n. It fails the test when limit passes first.
func (p *Process) Wait(t testing.TB, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.exited:
		return p.Code()
	case <-time.After(limit):
		t.Fatalf("process %d still runs after %s; its output:\n%s", p.PID(), limit, p.Output())
		return -1
	}
}

// Code is the exit code of a process that has exited; see Wait.
func (p *Process) Code() int {
	if w := p.cmd.ProcessState.Sys().(syscall.WaitStatus); w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}

// PeakMemory is the largest resident set size of a process that has exited, in bytes.
func (p *Process) PeakMemory() int64 {
	return p.cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
}

// Output is all that the process has written so far.
func (p *Process) Output() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Tail is the last n lines of the output.
func (p *Process) Tail(n int) string {
	lines := strings.Split(strings.TrimRight(p.Output(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Reasons returns the lines in which a server says why it does not start: those of level error or above, etcd's
// warning about flags, and every line that is not a log line, without the usage text after a mistake on the
// command line.
func Reasons(output string) []string {
	var reasons []string
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(strings.TrimSpace(line), "Usage:") {
			break
		}
		var l struct{ Level, Msg string }
		switch err := json.Unmarshal([]byte(line), &l); {
		case strings.TrimSpace(line) == "":
		case err != nil:
			reasons = append(reasons, line)
		case l.Level != "debug" && l.Level != "info" && l.Level != "warn", l.Msg == "failed to verify flags":
			reasons = append(reasons, line)
		}
	}
	return reasons
}

// Run runs a program to completion and returns standard output and standard error together.
func Run(limit time.Duration, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = withoutEtcd(os.Environ())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	return out.String(), err
}

// Eventually polls f until it returns nil. It fails the test when limit passes first.
func Eventually(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
