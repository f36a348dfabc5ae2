package handbook

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"quorate/compat/child"
)

var (
	etcdFlag = flag.String("etcd", "", "server binary; empty: built from this tree")
	ctlFlag  = flag.String("etcdctl", "", "etcdctl binary; empty: built from this tree")
	utlFlag  = flag.String("etcdutl", "", "etcdutl binary; empty: built from this tree")
	required = flag.Bool("privileged", false, "fail, instead of leaving a test out, where this machine forbids namespaces")
	record   = flag.Bool("record", false, "write what is printed into the pages where an output block is the line x")
	only     = flag.String("section", "", "only the sections whose heading contains this")
	seeing   = flag.Duration("seeing", limit, "how long to look for what a page shows")
)

var programs = map[string]string{} // paths of the binaries

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 120 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runMain(m))
}

func runMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "handbook")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for name, path := range map[string]string{"etcd": *etcdFlag, "etcdctl": *ctlFlag, "etcdutl": *utlFlag} {
		if programs[name], err = child.Binary(path, name, dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// lab is the set of hosts that the pages mention.
type lab struct {
	t          *testing.T
	machines   child.Machines
	hosts      []*host
	mounts     []string
	bin        string         // the programs
	recorded   map[int]string // replacements for lines of the page
	impossible error          // why the last section cannot be run on this machine
	founding   []section      // the page that describes how a cluster is set up
}

// host is one machine. What it has below /etc, /var/lib, /usr/local/bin and /root is in root.
type host struct {
	t      *testing.T // of the section that is running
	lab    *lab
	name   string
	number int
	root   string
	unit   *unit
}

// places are the directories of which a host has its own: their paths, and their names in root.
var places = [][2]string{{"/etc", "etc"}, {"/var/lib", "lib"}, {"/usr/local/bin", "bin"}, {"/root", "home"}}

func newLab(t *testing.T, n int) *lab {
	t.Helper()
	l := &lab{t: t, machines: child.NewMachines(t, n)}
	var err error
	if l.founding, err = readPage("setup.md"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l.bin = filepath.Join(dir, "programs")
	if err := os.Mkdir(l.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, path := range programs {
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(l.bin, name), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i <= n; i++ {
		h := &host{t: t, lab: l, name: l.machines.Name(i), number: i, root: filepath.Join(dir, l.machines.Name(i))}
		h.unit = &unit{host: h}
		for _, p := range places {
			if err := os.MkdirAll(filepath.Join(h.root, p[1]), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		h.install()
		s, err := net.Listen("unix", "/run/"+h.name+".sock")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: h.unit}
		go srv.Serve(s)
		t.Cleanup(func() { srv.Close() })
		l.hosts = append(l.hosts, h)
	}
	return l
}

// install puts the programs of this tree and the stand-ins into /usr/local/bin.
func (h *host) install() {
	h.t.Helper()
	bin := filepath.Join(h.root, "bin")
	for name := range programs {
		if err := os.Link(filepath.Join(h.lab.bin, name), filepath.Join(bin, name)); err != nil {
			h.t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"systemctl": fmt.Sprintf(client, h.name, "systemctl"), "lab": fmt.Sprintf(client, h.name, "lab"),
		"ssh": fmt.Sprintf(client, h.name, "ssh"), "scp": fmt.Sprintf(client, h.name, "scp"),
		"journalctl": fmt.Sprintf(journalctl, h.name), "sudo": "#!/bin/bash\nexec \"$@\"\n",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
}

// on is the command line that runs a program on the host, with its own directories.
func (h *host) on(words ...string) []string {
	var script strings.Builder
	for _, p := range places {
		fmt.Fprintf(&script, "mount --rbind %s %s; ", filepath.Join(h.root, p[1]), p[0])
	}
	script.WriteString(`cd /root; export HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; exec "$@"`)
	return append([]string{"ip", "netns", "exec", h.name, "bash", "-ec", script.String(), "bash"}, words...)
}

// sh runs a script on the host and returns all that it prints.
func (h *host) sh(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	words := h.on("bash", "-e", "-c", "for f in /etc/profile.d/etcd.sh; do if test -f $f; then . $f; fi; done\n"+h.local(script))
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// local fills in the host's name and address where a page says that each host has its own.
func (h *host) local(script string) string {
	return strings.ReplaceAll(script, "NAME=etcd-1 IP=10.0.0.1\n", fmt.Sprintf("NAME=%s IP=%s\n", h.name, h.lab.machines.IP(h.number)))
}

// wipe makes the host a fresh one.
func (h *host) wipe() {
	h.t.Helper()
	h.unit.procs = nil
	for _, p := range places {
		dir := filepath.Join(h.root, p[1])
		switch p[1] {
		case "bin":
			continue
		case "etc": // a copy of this machine's, without what a user may not read
			if _, err := os.Stat(filepath.Join(dir, "passwd")); err == nil {
				os.RemoveAll(filepath.Join(dir, "etcd"))
				os.Remove(filepath.Join(dir, "systemd/system/etcd.service"))
				os.Remove(filepath.Join(dir, "profile.d/etcd.sh"))
				continue
			}
			exec.Command("cp", "-a", "/etc/.", dir).Run()
			os.MkdirAll(filepath.Join(dir, "systemd/system"), 0o755)
			os.MkdirAll(filepath.Join(dir, "profile.d"), 0o755)
		default:
			entries, err := os.ReadDir(dir)
			if err != nil {
				h.t.Fatal(err)
			}
			for _, e := range entries {
				if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					h.t.Fatal(err)
				}
			}
		}
	}
}

// prepare brings the hosts into the state in which a section begins: "none", fresh hosts; "running", a cluster
// as the page about setup creates it; "goes on", as the previous section left them.
func (l *lab) prepare(t *testing.T, state string) {
	t.Helper()
	l.impossible = nil
	for _, h := range l.hosts {
		h.t = t
	}
	if state == "goes on" {
		return
	}
	for _, h := range l.hosts {
		h.unit.kill(syscall.SIGKILL)
	}
	for _, m := range slices.Backward(l.mounts) {
		if err := run("umount", "--lazy", m); err != nil {
			t.Error(err)
		}
	}
	l.mounts = nil
	for i, h := range l.hosts {
		h.wipe()
		l.machines.Plug(t, i+1)
	}
	switch state {
	case "none":
	case "running":
		for _, s := range l.founding {
			if strings.HasPrefix(s.cluster, "none, then running") {
				for _, x := range s.steps {
					if x.kind == kindDo {
						l.step(t, "setup.md", x)
					}
				}
				return
			}
		}
		t.Fatal("setup.md has no section that leads to a running cluster")
	default:
		t.Fatalf("a section begins with a cluster that is %q", state)
	}
}

// stamps are the fields of log lines that no page shows.
var stamps = regexp.MustCompile(`"(ts|caller)":"[^"]*",`)

// show is what a page should show of an output; if more output is allowed, each shape once.
func show(out string, once bool) string {
	var shown strings.Builder
	seen := map[string]bool{}
	for line := range strings.Lines(stamps.ReplaceAllString(out, "")) {
		if !once || !seen[shape(line)] {
			shown.WriteString(line)
		}
		seen[shape(line)] = true
	}
	return shown.String()
}

// step runs a step and compares its output with the page.
func (l *lab) step(t *testing.T, page string, s step) {
	t.Helper()
	if s.kind == kindSkip {
		return
	}
	if s.kind == kindSaid {
		l.said(t, page, s)
		return
	}
	for _, name := range s.hosts {
		var h *host
		for _, x := range l.hosts {
			if x.name == name {
				h = x
			}
		}
		if h == nil {
			t.Fatalf("%s:%d: there is no host %q", page, s.line, name)
		}
		deadline := time.Now().Add(*seeing)
		for {
			begin := time.Now()
			out, err := h.sh(s.script)
			if *record && len(s.shows) > 0 && s.shows[0] == "x" && strings.TrimSpace(out) != "" {
				if s.kind == kindFail {
					out = strings.Join(child.Reasons(out), "\n")
				}
				l.recorded[s.shown] = show(out, len(s.shows) > 1)
				s.shows = nil
			}
			missing, more := compare(s.shows, out)
			wrong := ""
			switch {
			case s.kind == kindFail && err == nil:
				wrong = "it succeeds"
			case (s.kind == kindDo || s.kind == kindCause) && err != nil:
				wrong = err.Error()
			case len(s.shows) > 0 && len(missing) > 0:
				wrong = fmt.Sprintf("the page shows, and it does not print:\n%s\nmore:\n%s", strings.Join(missing, "\n"), strings.Join(more, "\n"))
			case len(s.shows) > 0 && len(more) > 0:
				wrong = "it prints more than the page shows:\n" + strings.Join(more, "\n")
			}
			if l.impossible != nil {
				t.Skip(l.impossible) // nothing here can be proved on such a machine
			}
			if wrong == "" {
				t.Logf("%s:%d on %s: %.1fs", page, s.line, name, time.Since(begin).Seconds())
				break
			}
			if s.kind != kindSee || time.Now().After(deadline) {
				t.Fatalf("%s:%d on %s: %s\n--- the command:\n%s--- its output:\n%s", page, s.line, name, wrong, s.script, out)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}
