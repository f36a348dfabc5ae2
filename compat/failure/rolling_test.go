package failure

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"quorate/compat/child"
)

// A process that is started on a directory still in use by another process waits until that one has exited, and
// continues with what it left: as in rolling restarts, where the two may overlap. The first is Quorate or etcd,
// and is stopped by a signal or killed.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	for name, binary := range binaries() {
		for how, signal := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				first := s.start(t, binary)
				c := child.Dial(t, s.client)
				child.Eventually(t, limit, "the first answers", func() error { _, err := c.PutWithin(limit, "k", "v"); return err })
				second := s.start(t, etcd, "--listen-client-urls=http://"+s.more[0], "--advertise-client-urls=http://"+s.more[0], "--listen-peer-urls=http://"+s.more[1])
				says(t, second, "another process uses the data directory; waiting until it ends")
				if _, err := c.PutWithin(limit, "k", "w"); err != nil {
					t.Errorf("the first is disturbed: %v", err)
				}
				first.Signal(signal)
				d := child.Dial(t, s.more[0])
				child.Eventually(t, limit, "the second answers", func() error {
					if !second.Running() {
						t.Fatalf("the second ended with %d:\n%s", second.Code(), second.Tail(5))
					}
					value, _, err := d.GetWithin(limit, "k")
					if err == nil && value != "w" {
						err = fmt.Errorf("it has %q", value)
					}
					return err
				})
			})
		}
	}
}

// A process that waits for its data directory under systemd asks for more time from the beginning and reports
// what it waits for: systemd kills a unit that exceeds its start timeout.
func TestWaitingTellsSystemd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first, _ := s.serve(t)
	// A socket's path may be about a hundred bytes long at most.
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	if err := socket.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	hear := func() string {
		t.Helper()
		b := make([]byte, 4096)
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	child.Start(t, child.Config{Program: etcd, Dir: filepath.Join(s.dir, "run"), Env: []string{"NOTIFY_SOCKET=" + socket.LocalAddr().String()},
		Args: s.args("--listen-client-urls=http://"+s.more[0], "--advertise-client-urls=http://"+s.more[0], "--listen-peer-urls=http://"+s.more[1])})
	const extend = "EXTEND_TIMEOUT_USEC=60000000\nSTATUS="
	// Each message counts by itself: an extension that comes too late is useless.
	for said := ""; said != extend+"waiting for another process that uses the data directory "+s.data; {
		if said = hear(); !strings.HasPrefix(said, extend) {
			t.Fatalf("systemd hears %q", said)
		}
	}
	first.Kill()
	said := hear()
	for ; strings.HasPrefix(said, extend); said = hear() {
	}
	if said != "READY=1" {
		t.Errorf("systemd hears %q, want READY=1", said)
	}
	if said = hear(); said != "STATUS=serving" {
		t.Errorf("systemd hears %q, want STATUS=serving", said)
	}
}

// A directory that other users may read causes a warning, in etcd's words.
func TestOpenDirectory(t *testing.T) {
	t.Parallel()
	for name, binary := range binaries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			if err := os.Mkdir(s.data, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(s.data, 0o755); err != nil {
				t.Fatal(err)
			}
			p := s.start(t, binary)
			says(t, p, `"msg":"check file permission","error":"directory \"`+s.data+`\" exist, but the permission is \"drwxr-xr-x\". The recommended permission is \"-rwx------\" to prevent possible unprivileged access to the data"`)
		})
	}
}

// A log that this user may not read is not treated as a missing one: no cluster is founded, and the error names
// the directory.
func TestUnreadableLog(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"the log", "what is above it"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			above := filepath.Join(s.dir, "above")
			wal := filepath.Join(above, "wal")
			p, c := s.serve(t, "--wal-dir="+wal)
			if _, err := c.PutWithin(limit, "k", "v"); err != nil {
				t.Fatal(err)
			}
			p.Kill()
			hidden := wal
			if where != "the log" {
				hidden = above
			}
			program, args := etcd, s.args("--wal-dir="+wal)
			if os.Geteuid() == 0 {
				// Root may read everything, so the member runs as another user.
				for dir := s.dir; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
					if err := os.Chmod(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				child.Must(t, "chown", "-R", "65534", s.data)
				copied := filepath.Join(s.dir, "etcd")
				child.Must(t, "cp", etcd, copied)
				program, args = "setpriv", append([]string{"--reuid=65534", "--clear-groups", copied}, args...)
			}
			if err := os.Chmod(hidden, 0); err != nil {
				t.Fatal(err)
			}
			p = child.Start(t, child.Config{Program: program, Args: args, Dir: filepath.Join(s.dir, "run")})
			code := p.Wait(t, limit)
			said := strings.Join(child.Reasons(p.Output()), "\n")
			if code != 1 || !strings.Contains(said, "permission denied") || !strings.Contains(said, wal) || !strings.Contains(said, "--wal-dir") {
				t.Errorf("exit code %d, and it says:\n%s", code, said)
			}
			if err := os.Chmod(hidden, 0o700); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 {
				child.Must(t, "chown", "-R", "0", s.data)
			}
			_, c = s.serve(t, "--wal-dir="+wal)
			if value, _, err := c.GetWithin(limit, "k"); err != nil || value != "v" {
				t.Errorf("afterwards: %q, %v", value, err)
			}
		})
	}
}

// A failure at the start reports its reason without a stack trace.
func TestNoStackTrace(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.start(t, etcd, "--auto-compaction-retention=abc")
	p.Wait(t, limit)
	if out := p.Output(); strings.Contains(out, "stacktrace") || !strings.Contains(out, `"msg":"failed to start etcd"`) {
		t.Errorf("it says:\n%s", out)
	}
}
