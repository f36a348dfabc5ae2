package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asProgram makes the test binary run as etcd.
const asProgram = "QUORATE_TEST_AS_ETCD"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// serving is etcd in a process of its own.
type serving struct {
	cmd    *exec.Cmd
	output bytes.Buffer
}

// serve starts etcd with the signals of the shell's trap ignored, and waits until it is
// ready.
func serve(t *testing.T, attr *syscall.SysProcAttr, ignored string, args ...string) *serving {
	t.Helper()
	dir := t.TempDir()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "n")})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	script := `exec "$0" "$@"`
	if ignored != "" {
		script = "trap '' " + ignored + "; " + script
	}
	p := &serving{cmd: exec.CommandContext(ctx, "sh", append([]string{"-c", script, self}, args...)...)}
	p.cmd.Dir = dir
	p.cmd.Env = []string{asProgram + "=1", "NOTIFY_SOCKET=" + filepath.Join(dir, "n"), "PATH=" + os.Getenv("PATH")}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.SysProcAttr = &p.output, &p.output, attr
	if err := p.cmd.Start(); err != nil {
		if attr != nil && (errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL)) {
			t.Skipf("no namespaces here: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	if err := notify.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 4096); ; {
		n, err := notify.Read(b)
		if err != nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
			t.Fatalf("not ready: %v\n%s", err, p.output.String())
		}
		if strings.Contains(string(b[:n]), "READY=1") {
			return p
		}
	}
}

// ends sends a signal, and returns how the process has ended.
func (p *serving) ends(t *testing.T, s syscall.Signal) syscall.WaitStatus {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

var programs = map[string][]string{
	"server":     {"--data-dir=d", "--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:0", "--listen-peer-urls=http://127.0.0.1:0"},
	"proxy":      {"--data-dir=d", "--proxy=on", "--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:0", "--initial-cluster=m=http://127.0.0.1:1"},
	"gateway":    {"gateway", "start", "--endpoints=127.0.0.1:1", "--listen-addr=127.0.0.1:0"},
	"grpc-proxy": {"grpc-proxy", "start", "--endpoints=127.0.0.1:1", "--listen-addr=127.0.0.1:0"},
}

// A process ends by the signal that it got, even if it was started with that signal
// ignored, as a script without job control starts what runs in the background.
func TestEndsThoughSignalsWereIgnored(t *testing.T) {
	for name, args := range programs {
		for _, c := range []struct {
			ignored string
			sent    syscall.Signal
		}{
			{"", syscall.SIGINT},
			{"INT", syscall.SIGINT},
			{"INT", syscall.SIGTERM},
			{"INT TERM", syscall.SIGINT},
			{"INT TERM", syscall.SIGTERM},
		} {
			t.Run(name+" ignores "+c.ignored+", gets "+c.sent.String(), func(t *testing.T) {
				t.Parallel()
				p := serve(t, nil, c.ignored, args...)
				if got := p.ends(t, c.sent); !got.Signaled() || got.Signal() != c.sent {
					t.Errorf("ended with status %#x, want the signal %v\n%s", got, c.sent, p.output.String())
				}
			})
		}
	}
}
