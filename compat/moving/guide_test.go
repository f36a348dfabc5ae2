package moving

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"quorate/compat/child"
	"quorate/compat/harness"
)

const guide = "../../docs/migrating-from-etcd.md"

// blocks returns the commands of one section by the kind that follows "sh".
func blocks(t *testing.T, section string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(guide)
	must(t, err)
	_, rest, ok := strings.Cut(string(b), "\n## "+section+"\n")
	if !ok {
		t.Fatalf("%s has no section %q", guide, section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	found := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)```sh ?([a-z-]*)\n(.*?)```").FindAllStringSubmatch(rest, -1) {
		found[m[1]] += m[2]
	}
	return found
}

// hosts are three machines of the guide, as directories on this one: what a unit on host i would do, a process
// does on its own ports, below its own root.
type hosts struct {
	t       *testing.T
	dir     string
	addrs   []string // of clients, then of peers
	servers [3]*child.Process
}

func newHosts(t *testing.T) *hosts {
	addrs, err := harness.FreeAddrs(6)
	must(t, err)
	h := &hosts{t: t, dir: t.TempDir(), addrs: addrs}
	link := func(dir string, programs map[string]string) {
		must(t, os.MkdirAll(dir, 0o755))
		for name, path := range programs {
			must(t, os.Symlink(path, filepath.Join(dir, name)))
		}
	}
	link(filepath.Join(h.dir, "quorate/bin"), map[string]string{"etcd": etcd, "etcdctl": etcdctl, "etcdutl": etcdutl})
	link(filepath.Join(h.dir, "etcd-v3.7.3-linux-amd64"), map[string]string{"etcd": real37, "etcdctl": realctl, "etcdutl": realutl})
	for i := range 3 {
		link(filepath.Join(h.root(i), "bin"), map[string]string{"etcd": real37, "etcdctl": realctl, "etcdutl": realutl})
		must(t, os.MkdirAll(filepath.Join(h.root(i), "lib"), 0o755))
		unit := fmt.Sprintf("ExecStart=/usr/local/bin/etcd --name etcd-%[1]d --data-dir /var/lib/etcd --listen-client-urls http://10.0.0.%[1]d:2379 "+
			"--advertise-client-urls http://10.0.0.%[1]d:2379 --listen-peer-urls http://10.0.0.%[1]d:2380 --initial-advertise-peer-urls http://10.0.0.%[1]d:2380 "+
			"--initial-cluster etcd-1=http://10.0.0.1:2380,etcd-2=http://10.0.0.2:2380,etcd-3=http://10.0.0.3:2380 --initial-cluster-state new\n", i+1)
		must(t, os.WriteFile(filepath.Join(h.root(i), "etcd.service"), []byte(h.local(i, unit)), 0o600))
	}
	return h
}

func (h *hosts) root(i int) string { return filepath.Join(h.dir, fmt.Sprintf("host%d", i+1)) }

// local replaces the guide's names by those of host i, and the third host by it.
func (h *hosts) local(i int, text string) string {
	own := fmt.Sprintf("10.0.0.%d:2380", i+1)
	text = strings.NewReplacer("NAME=etcd-3", fmt.Sprintf("NAME=etcd-%d", i+1), "PEER=http://10.0.0.3:2380", "PEER=http://"+own,
		"--name etcd-3", fmt.Sprintf("--name etcd-%d", i+1), "--initial-advertise-peer-urls http://10.0.0.3:2380", "--initial-advertise-peer-urls http://"+own,
		"/etc/systemd/system/etcd.service", filepath.Join(h.root(i), "etcd.service"),
		"/usr/local/bin", filepath.Join(h.root(i), "bin"), "/var/lib/etcd", filepath.Join(h.root(i), "lib/etcd")).Replace(text)
	for j := range 3 {
		text = strings.ReplaceAll(text, fmt.Sprintf("10.0.0.%d:2379", j+1), h.addrs[j])
		text = strings.ReplaceAll(text, fmt.Sprintf("10.0.0.%d:2380", j+1), h.addrs[3+j])
	}
	return text
}

// systemctl executes the unit's verbs.
func (h *hosts) systemctl(i int, verb string) {
	h.t.Helper()
	switch verb {
	case "start":
		unit, err := os.ReadFile(filepath.Join(h.root(i), "etcd.service"))
		must(h.t, err)
		args := strings.Fields(strings.TrimPrefix(string(unit), "ExecStart="))
		h.servers[i] = child.Start(h.t, child.Config{Program: args[0], Args: args[1:], Dir: filepath.Join(h.root(i), "run")})
	case "stop":
		h.servers[i].Signal(syscall.SIGTERM)
		h.servers[i].Wait(h.t, limit)
	}
}

var verb = regexp.MustCompile(`^sudo systemctl (\S+)( etcd)?$`)

// run executes a block on host i. systemctl is simulated here, everything else runs in the shell.
func (h *hosts) run(i int, block string) {
	h.t.Helper()
	if block == "" {
		h.t.Fatal("the guide has no such commands")
	}
	var script strings.Builder
	flush := func() {
		h.t.Helper()
		if script.Len() == 0 {
			return
		}
		cmd := exec.CommandContext(withLimit(h.t), "bash", "-e", "-c", "sudo() { \"$@\"; }\ninstall() { shift 2; for to; do :; done; for f; do test $f = $to || ln -sf $PWD/$f $to; done; }\n"+script.String())
		cmd.Dir = h.dir
		cmd.Env = append(cmd.Environ(), "PATH="+filepath.Join(h.root(i), "bin")+":"+os.Getenv("PATH"),
			h.local(i, "ETCDCTL_ENDPOINTS=http://10.0.0.1:2379,http://10.0.0.2:2379,http://10.0.0.3:2379"))
		if out, err := cmd.CombinedOutput(); err != nil {
			h.t.Fatalf("host %d: %v\n%s\n%s", i+1, err, script.String(), out)
		}
		script.Reset()
	}
	assign := "" // variables live as long as the block
	for line := range strings.Lines(h.local(i, block)) {
		if m := verb.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			flush()
			h.systemctl(i, m[1])
			continue
		}
		if strings.HasPrefix(line, "NAME=") {
			assign = line
		}
		if script.Len() == 0 && !strings.HasPrefix(line, "NAME=") {
			script.WriteString(assign)
		}
		script.WriteString(line)
	}
	flush()
}

// state is the state of the first host at a revision, 0 for the current one.
func (h *hosts) state(rev int64) state {
	h.t.Helper()
	s := look(h.t, h.member(0), rev)
	s.Members = "" // these change
	return s
}

// member is a handle for reading from a host.
func (h *hosts) member(i int) *harness.Member {
	h.t.Helper()
	return harness.At(h.addrs[i])
}

func (h *hosts) up() {
	h.t.Helper()
	for i := range 3 {
		h.systemctl(i, "start")
	}
	for i := range 3 {
		must(h.t, h.member(i).WaitReady(withLimit(h.t)))
	}
}

// TestGuide runs the commands of docs/migrating-from-etcd.md, and prints what clients experienced meanwhile.
// Members of etcd are not judged: they drop forwarded requests while they hand over.
func TestGuide(t *testing.T) {
	t.Parallel()
	h := newHosts(t)
	h.up()
	fill(t, h.member(0), 300)
	want := h.state(0)
	h.run(0, blocks(t, "Before you begin")[""])
	check := func(what string) {
		t.Helper()
		must(t, h.member(0).WaitReady(withLimit(t)))
		same(t, what, h.state(want.Rev), want)
	}
	for _, c := range []struct {
		section string
		back    int // hosts that go back; a replaced member makes each next one wait for seconds
	}{{"1. Member by member", 1}, {"2. In place", 3}} {
		b := blocks(t, c.section)
		w := child.StartWriters(t, h.addrs[:3], 6, limit)
		for i := range 3 {
			h.run(i, b["host"])
		}
		t.Logf("%s: %v", c.section, w.Stop())
		check(c.section)
		w = child.StartWriters(t, h.addrs[:3], 6, limit)
		for i := range c.back {
			h.run(i, b["host-back"])
		}
		t.Logf("%s, and back: %v", c.section, w.Stop())
		check(c.section + ", and back")
	}
	b := blocks(t, "3. With a snapshot file")
	for _, restore := range []string{b["restore"], b["restore-back"]} {
		h.run(0, b[""])
		for i := range 3 {
			h.run(i, restore)
		}
		for i := range 3 {
			h.run(i, b["restore-start"])
		}
		check("restored")
		must(t, os.Remove(filepath.Join(h.dir, "move.db")))
	}
}
