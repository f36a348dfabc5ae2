package handbook

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"quorate/compat/child"
)

// unit is etcd.service of one host, as far as the handbook uses systemd: a process that reports readiness, its
// log, and the verbs. It is not restarted when it fails.
type unit struct {
	*host
	procs []*child.Process // all processes so far, the last one may be running
	ready chan struct{}    // closed when the last one has reported readiness
}

// read returns the values of the unit file by key; the last one of a key counts.
func (u *unit) read() (map[string][]string, error) {
	b, err := os.ReadFile(filepath.Join(u.root, "etc/systemd/system/etcd.service"))
	if err != nil {
		return nil, errors.New("Failed to start etcd.service: Unit etcd.service not found.")
	}
	keys := map[string][]string{}
	for l := range strings.Lines(strings.ReplaceAll(string(b), "\\\n", " ")) {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), "="); ok {
			keys[k] = append(keys[k], v)
		}
	}
	return keys, nil
}

// start starts the process, and waits until it is ready if block is set.
func (u *unit) start(block bool) error {
	if u.running() {
		return nil
	}
	keys, err := u.read()
	if err != nil {
		return err
	}
	if len(keys["ExecStart"]) != 1 {
		return fmt.Errorf("%d lines of ExecStart", len(keys["ExecStart"]))
	}
	// Where the packages install it, and where units of etcdutl expect it.
	words := strings.Fields(keys["ExecStart"][0])
	words[0] = strings.Replace(words[0], "/usr/bin/", "/usr/local/bin/", 1)
	socket := "/run/notify-" + u.name
	os.Remove(socket)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o777); err != nil {
		return err
	}
	args := u.on(words...)
	if user := keys["User"]; len(user) == 1 && os.Geteuid() == 0 && os.Getenv("HANDBOOK_MAPPED") == "" {
		args = u.on(append([]string{"setpriv", "--reuid=" + user[0], "--regid=" + user[0], "--clear-groups", "--pdeathsig=KILL", "--"}, words...)...)
	}
	p := child.Start(u.lab.t, child.Config{Program: args[0], Args: args[1:], Dir: filepath.Join(u.root, "process"),
		Env: append([]string{"NOTIFY_SOCKET=" + socket}, keys["Environment"]...)})
	ready := make(chan struct{})
	u.procs, u.ready = append(u.procs, p), ready
	go func() {
		<-p.Exited()
		l.Close()
	}()
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), "READY=1") {
				close(ready)
				return
			}
		}
	}()
	if !block {
		return nil
	}
	select {
	case <-ready:
		return nil
	case <-p.Exited():
		return errors.New(`Job for etcd.service failed because the control process exited with error code.
See "systemctl status etcd.service" and "journalctl -xeu etcd.service" for details.`)
	case <-time.After(limit):
		return errors.New("Job for etcd.service timed out.")
	}
}

func (u *unit) running() bool { return len(u.procs) > 0 && u.procs[len(u.procs)-1].Running() }

// kill sends a signal and waits for the process if the signal is final.
func (u *unit) kill(s syscall.Signal) error {
	if !u.running() {
		return nil
	}
	p := u.procs[len(u.procs)-1]
	p.Signal(s)
	if s != syscall.SIGTERM && s != syscall.SIGKILL {
		return nil
	}
	select {
	case <-p.Exited():
		return nil
	case <-time.After(limit):
		return errors.New("etcd.service: State 'stop-sigterm' timed out.")
	}
}

// state is the output of systemctl is-active.
func (u *unit) state() string {
	switch {
	case len(u.procs) == 0:
		return "inactive"
	case !u.running():
		if c := u.procs[len(u.procs)-1].Code(); c != 0 && c != 128+int(syscall.SIGTERM) {
			return "failed"
		}
		return "inactive"
	}
	select {
	case <-u.ready:
		return "active"
	default:
		return "activating"
	}
}

// systemctl executes one command line of it.
func (u *unit) systemctl(args []string) (string, error) {
	var verb, signal string
	block, now := true, false
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--no-block":
			block = false
		case a == "--now":
			now = true
		case a == "-s":
			i++
			signal = args[i]
		case a == "etcd" || a == "etcd.service":
		case verb == "":
			verb = a
		default:
			return "", fmt.Errorf("systemctl is not played here with %q", args)
		}
	}
	switch verb {
	case "daemon-reload":
		return "", nil
	case "start":
		return "", u.start(block)
	case "enable":
		if !now {
			return "", nil
		}
		return "", u.start(block)
	case "stop":
		return "", u.kill(syscall.SIGTERM)
	case "restart":
		if err := u.kill(syscall.SIGTERM); err != nil {
			return "", err
		}
		return "", u.start(block)
	case "kill":
		s, ok := map[string]syscall.Signal{"SIGKILL": syscall.SIGKILL, "SIGSTOP": syscall.SIGSTOP, "SIGCONT": syscall.SIGCONT}[signal]
		if !ok {
			return "", fmt.Errorf("signal %q", signal)
		}
		return "", u.kill(s)
	case "is-active":
		if s := u.state(); s != "active" {
			return s + "\n", errors.New("")
		}
		return "active\n", nil
	}
	return "", fmt.Errorf("systemctl is not played here with %q", args)
}

// journal is the log of all processes so far.
func (u *unit) journal() string {
	var b strings.Builder
	for _, p := range u.procs {
		b.WriteString(p.Output())
	}
	return b.String()
}

// ServeHTTP answers the programs systemctl, journalctl and lab on the hosts.
func (u *unit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	args := r.Form["a"]
	var out string
	var err error
	switch r.URL.Path {
	case "/systemctl":
		out, err = u.systemctl(args)
	case "/journalctl":
		out = u.journal()
	case "/ssh":
		var to *host
		if to, _, err = u.lab.remote(args[0] + ":"); err == nil {
			if out, err = to.sh(strings.Join(args[1:], " ")); err != nil {
				err = errors.New("") // ssh itself prints nothing
			}
		}
	case "/scp":
		err = u.scp(args)
	case "/lab":
		out, err = u.lab.do(u.host, args)
	}
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		if text := err.Error(); text != "" {
			out += text + "\n"
		}
	}
	w.Write([]byte(out))
}

// remote resolves root@ADDRESS:PATH to the host and the path in this test.
func (l *lab) remote(target string) (*host, string, error) {
	address, path, ok := strings.Cut(strings.TrimPrefix(target, "root@"), ":")
	for _, h := range l.hosts {
		if ok && l.machines.IP(h.number) == address {
			return h, h.inside(path), nil
		}
	}
	return nil, "", fmt.Errorf("ssh: Could not resolve hostname %s", target)
}

// inside maps a path of the host to its real location.
func (h *host) inside(path string) string {
	for _, p := range places {
		if rest, ok := strings.CutPrefix(path, p[0]+"/"); ok {
			return filepath.Join(h.root, p[1], rest)
		}
	}
	return filepath.Join(h.root, "home", path)
}

// scp copies files of this host to another one.
func (u *unit) scp(args []string) error {
	args = slices.DeleteFunc(args, func(a string) bool { return a == "-p" })
	_, target, err := u.lab.remote(args[len(args)-1])
	if err != nil {
		return err
	}
	words := []string{"-a"}
	for _, a := range args[:len(args)-1] {
		words = append(words, u.inside(a))
	}
	return run("cp", append(words, target)...)
}

// client is a program on a host that passes its arguments to ServeHTTP.
const client = `#!/bin/bash
args=()
for a; do args+=(--data-urlencode "a=$a"); done
exec curl -s --fail-with-body --unix-socket /run/%[1]s.sock "${args[@]}" --data-urlencode x= http://host/%[2]s
`

// journalctl supports -u, -o cat, -n N and --no-pager.
const journalctl = `#!/bin/bash
n=+1
while test $# -gt 0; do
  case $1 in -u|-o) shift;; -n) n=$2; shift;; --no-pager) ;; *) echo "journalctl is not played here with $1"; exit 1;; esac
  shift
done
curl -s --unix-socket /run/%[1]s.sock http://host/journalctl | tail -n $n
`

// do causes what no command on the host can.
func (l *lab) do(h *host, args []string) (string, error) {
	h.t.Helper()
	data := filepath.Join(h.root, "lib/etcd")
	switch args[0] {
	case "unplug":
		l.machines.Unplug(h.t, h.number)
	case "plug":
		l.machines.Plug(h.t, h.number)
	case "small-disk": // MiB
		if _, err := strconv.Atoi(args[1]); err != nil {
			return "", err
		}
		return "", l.mount(h, "-t", "tmpfs", "-o", "size="+args[1]+"m,mode=1777", "small", data)
	case "block-disk": // a disk whose writes can be made to wait
		// The image of the disk is a file of a second disk, which is what gets frozen: the first one then takes
		// writes into the page cache, and a sync waits for them.
		outer, below := filepath.Join(h.root, "outer.img"), filepath.Join(h.root, "below")
		image := filepath.Join(below, "disk.img")
		for _, c := range [][]string{{"truncate", "--size=400M", outer}, {"mkfs.ext4", "-q", outer}} {
			if err := run(c[0], c[1:]...); err != nil {
				return "", err
			}
		}
		if err := l.mount(h, "-o", "loop", outer, below); err != nil {
			return "", err
		}
		for _, c := range [][]string{{"truncate", "--size=200M", image}, {"mkfs.ext4", "-q", image}} {
			if err := run(c[0], c[1:]...); err != nil {
				return "", err
			}
		}
		if err := l.mount(h, "-o", "loop", image, data); err != nil {
			return "", err
		}
		return "", os.Chmod(data, 0o777)
	case "freeze":
		return "", run("fsfreeze", "-f", filepath.Join(h.root, "below"))
	case "thaw":
		return "", run("fsfreeze", "-u", filepath.Join(h.root, "below"))
	case "clock": // of the running member, ahead by this much
		by, err := time.ParseDuration(args[1])
		if err != nil {
			return "", err
		}
		c, err := child.TakeClock(h.unit.procs[len(h.unit.procs)-1].PID(), "etcd")
		if errors.Is(err, child.ErrNoClock) {
			l.impossible = err
		}
		if err != nil {
			return "", err
		}
		return "", c.Jump(by)
	default:
		return "", fmt.Errorf("the lab has no %q", args)
	}
	return "", nil
}

func (l *lab) mount(h *host, args ...string) error {
	data := args[len(args)-1]
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	if err := run("mount", args...); err != nil {
		return err
	}
	l.mounts = append(l.mounts, data)
	return nil
}

func run(program string, args ...string) error {
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", program, args, err, out)
	}
	return nil
}
