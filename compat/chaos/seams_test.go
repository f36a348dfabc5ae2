package chaos

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"quorate/compat/child"
)

// tellTime is in the environment of a process that only prints what time it is.
const tellTime = "CHAOS_TELL_TIME"

func printTime() {
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		now := time.Now()
		fmt.Println(now.Unix(), now.Sub(start).Milliseconds()) // the difference is that of the monotonic clock
	}
}

// The wall clock of a process jumps, there and back, and its monotonic clock does not.
func TestClock(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), tellTime+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	c, err := child.TakeClock(cmd.Process.Pid, os.Args[0])
	if errors.Is(err, child.ErrNoClock) {
		t.Skip(err) // nothing here can be proved on such a machine
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var last int64
	for _, by := range []time.Duration{0, time.Hour, -400 * 24 * time.Hour, 0} {
		if err := c.Jump(by); err != nil {
			t.Fatal(err)
		}
		child.Eventually(t, limit, fmt.Sprintf("the process is %v ahead", by), func() error {
			var wall, since int64
			if !lines.Scan() {
				return lines.Err()
			}
			if _, err := fmt.Sscan(lines.Text(), &wall, &since); err != nil {
				return err
			}
			if since < last || since > last+60_000 {
				t.Fatalf("its monotonic clock goes from %d ms to %d ms", last, since)
			}
			last = since
			if d := time.Until(time.Unix(wall, 0)) - by; d.Abs() > 30*time.Second {
				return fmt.Errorf("it is off by %v", d)
			}
			return nil
		})
	}
}

// What the network is told to lose does not arrive: all of it, data only, in one direction or both.
func TestWire(t *testing.T) {
	if !child.Isolated(t, *required) {
		return
	}
	child.Must(t, "mount", "-t", "tmpfs", "none", "/run")
	w := newWire(t, 2, 1)
	server, err := net.Listen("tcp", w.address(0)+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Addr().String())
	// A machine sends a byte whenever it is asked to, over one connection.
	ask := child.Start(t, child.Config{Program: "ip", Dir: t.TempDir() + "/1",
		Args: w.On(1, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%s; while read -r -n 1 x <&3; do printf b >&3; done", w.address(0), port))})
	conn, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	echo := func(within time.Duration) error {
		conn.SetDeadline(time.Now().Add(within))
		if _, err := conn.Write([]byte("a")); err != nil {
			return err
		}
		_, err := conn.Read(make([]byte, 1))
		return err
	}
	if err := echo(limit); err != nil {
		t.Fatal(err, ask.Output())
	}
	for name, rules := range map[string][2]rule{
		"all there": {{cut: true}, {}}, "all back": {{}, {cut: true}}, "data there": {{deaf: true}, {}}, "data back": {{}, {deaf: true}},
		"half of them": {{loss: 1}, {loss: 1}},
	} {
		w.set(0, 1, rules[0])
		w.set(1, 0, rules[1])
		before := w.lost.Load()
		if err := echo(300 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s lost: got %v, want no answer", name, err)
		}
		if w.lost.Load() == before {
			t.Errorf("%s lost: no packet was", name)
		}
		w.set(0, 1, rule{})
		w.set(1, 0, rule{})
		conn.SetDeadline(time.Now().Add(limit))
		if _, err := conn.Read(make([]byte, 1)); err != nil { // TCP sends it again
			t.Fatalf("%s arrives again: %v", name, err)
		}
	}
	w.set(0, 1, rule{double: 1, delay: 5 * time.Millisecond, jitter: 20 * time.Millisecond})
	for range 20 {
		if err := echo(limit); err != nil {
			t.Fatal(err)
		}
	}
	if w.doubled.Load() < 20 || w.postponed.Load() < 40 {
		t.Errorf("%v, want at least 20 doubled and 40 delayed", w)
	}
}
