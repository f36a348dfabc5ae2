package setup

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/pki"
)

// planned is a cluster that etcdutl planned, on machines of its own.
type planned struct {
	*testing.T
	machines child.Machines
	out, dir string   // of the files of the plan, and of the data
	etcdctl  []string // how the plan invokes it
}

// newPlanned plans a cluster of three on the first of n machines and returns the printed plan.
func newPlanned(t *testing.T, n int, flags ...string) (*planned, string) {
	t.Helper()
	p := &planned{T: t, machines: child.NewMachines(t, n), dir: t.TempDir()}
	p.out = filepath.Join(p.dir, "plan")
	args := []string{"cluster", "plan", "--out", p.out}
	for i := 1; i <= 3; i++ {
		args = append(args, p.machines.Name(i)+"="+p.machines.IP(i))
	}
	text := p.etcdutl(append(args, flags...)...)
	line := p.command(text, "etcdctl ", " endpoint status --cluster -w table")
	p.etcdctl = line[1 : len(line)-len([]string{"endpoint", "status", "--cluster", "-w", "table"})]
	return p, text
}

func (p *planned) etcdutl(args ...string) string {
	p.Helper()
	out, err := child.Run(limit, etcdutl, args...)
	if err != nil {
		p.Fatalf("etcdutl %q: %v\n%s", args, err, out)
	}
	return out
}

// command is the one line of a plan with this prefix and suffix, as words.
func (p *planned) command(text, begin, end string) []string {
	p.Helper()
	var found []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, begin) && strings.HasSuffix(line, end) {
			found = append(found, line)
		}
	}
	if len(found) != 1 {
		p.Fatalf("%d lines begin with %q and end with %q in\n%s", len(found), begin, end, text)
	}
	return strings.Fields(found[0])
}

// start runs the command of the unit file for machine i, on that machine.
func (p *planned) start(i int) *child.Process {
	p.Helper()
	unit, err := os.ReadFile(filepath.Join(p.out, "hosts", p.machines.Name(i), "etcd.service"))
	if err != nil {
		p.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(unit), "\nExecStart=")
	line, _, _ := strings.Cut(strings.ReplaceAll(rest, "\\\n", ""), "\n")
	return p.run(i, strings.Fields(line))
}

// run runs a command line on machine i, with the program and the directories that it names replaced by those of
// this test, because all machines share one disk.
func (p *planned) run(i int, words []string) *child.Process {
	p.Helper()
	name := p.machines.Name(i)
	for n, w := range words {
		w = strings.Replace(w, "/etc/etcd/pki/", filepath.Join(p.out, "hosts", name, "pki")+"/", 1)
		words[n] = strings.Replace(w, "/var/lib/etcd", filepath.Join(p.dir, name, "data"), 1)
	}
	return child.Start(p, child.Config{Program: "ip", Dir: filepath.Join(p.dir, name), Args: p.machines.On(i, etcd, words[1:]...)})
}

// ctl runs etcdctl on machine i as the plan says.
func (p *planned) ctl(i int, args ...string) (string, error) {
	return p.machines.Run(30*time.Second, i, etcdctl, append(append([]string{}, p.etcdctl...), args...)...)
}

// shows waits until the status table that the plan asks for has n members and one leader.
func (p *planned) shows(i, n int) {
	p.Helper()
	child.Eventually(p, limit, fmt.Sprintf("a table of %d members", n), func() error {
		out, err := p.ctl(i, "endpoint", "status", "--cluster", "-w", "table")
		leaders := column(out, "IS LEADER")
		if err != nil || len(leaders) != n || strings.Count(strings.Join(leaders, " "), "true") != 1 {
			return fmt.Errorf("%v, leaders %q:\n%s", err, leaders, out)
		}
		return nil
	})
}

// column is the cells of a table below one of its headings.
func column(table, heading string) []string {
	var cells []string
	at := -1
	for line := range strings.Lines(table) {
		words := strings.Split(line, "│")
		for i := range words {
			words[i] = strings.TrimSpace(words[i])
		}
		switch {
		case len(words) == 1: // a rule
		case at < 0:
			if at = slices.Index(words, heading); at < 0 {
				return nil
			}
		default:
			cells = append(cells, words[at])
		}
	}
	return cells
}

func (p *planned) put(i int, key, value string) {
	p.Helper()
	for _, c := range []struct {
		args []string
		want string
	}{{[]string{"put", key, value}, "OK\n"}, {[]string{"get", key}, key + "\n" + value + "\n"}} {
		child.Eventually(p, limit, strings.Join(c.args, " "), func() error {
			if out, err := p.ctl(i, c.args...); err != nil || out != c.want {
				return fmt.Errorf("%q, %v", out, err)
			}
			return nil
		})
	}
}

// live starts the planned cluster, kills a member and restarts it.
func (p *planned) live() {
	p.Helper()
	procs := map[int]*child.Process{}
	for i := 1; i <= 3; i++ {
		procs[i] = p.start(i)
	}
	p.shows(1, 3)
	p.put(2, "greeting", "hello")
	procs[1].Kill()
	p.put(3, "meanwhile", "on")
	p.start(1)
	p.shows(1, 3)
}

// votes waits until there are n members, started and voting.
func (p *planned) votes(n int) {
	p.Helper()
	child.Eventually(p, limit, fmt.Sprintf("%d voting members", n), func() error {
		out, err := p.ctl(2, "member", "list")
		if err != nil || strings.Count(out, ", started, ") != n || strings.Count(out, ", false\n") != n {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
}

// What etcdutl prints and writes for three hosts is a cluster, and a fourth joins it by the line that is printed
// for that.
func TestPlannedCluster(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd, "-etcdctl="+etcdctl, "-etcdutl="+etcdutl) {
		return
	}
	p, text := newPlanned(t, 4)
	p.live()
	join := p.command(text, "etcd --name NAME ", "")
	join[2] = p.machines.Name(4)
	p.run(4, join)
	p.votes(4)
	p.shows(4, 4)
	p.put(4, "four", "4")
}

// The same with certificates: the fourth host gets one of the same authority, and no client or member is
// admitted without one, nor to the peer port with a client's.
func TestPlannedClusterTLS(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd, "-etcdctl="+etcdctl, "-etcdutl="+etcdutl) {
		return
	}
	p, text := newPlanned(t, 4, "--tls")
	p.live()
	again := p.command(text, "etcdutl cluster plan NAME=ADDRESS --join ", "")
	again[3] = p.machines.Name(4) + "=" + p.machines.IP(4)
	p.etcdutl(again[1:]...)
	p.start(4)
	p.votes(4)
	p.shows(4, 4)
	p.put(4, "four", "4")
	p.refuses()
}

// refuses dials the ports of machine 1 from outside of the cluster.
func (p *planned) refuses() {
	p.Helper()
	read := func(path ...string) []byte {
		b, err := os.ReadFile(filepath.Join(append([]string{p.out}, path...)...))
		if err != nil {
			p.Fatal(err)
		}
		return b
	}
	client := &pki.Pair{Cert: read("client", "client.pem"), Key: read("client", "client.key")}
	for _, c := range []struct {
		port, path string
		pair       *pki.Pair
		ok         bool
	}{{"2379", "/version", client, true}, {"2379", "/version", nil, false}, {"2380", "/members", client, false}} {
		config := pki.Client(read("ca", "ca.pem"), c.pair)
		config.MinVersion = tls.VersionTLS12
		tr := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: tr, Timeout: limit}).Get("https://" + p.machines.IP(1) + ":" + c.port + c.path)
		if err == nil {
			resp.Body.Close()
		}
		// The alert may be lost when the server closes with the request unread, so any error will do.
		if (err == nil) != c.ok {
			p.Errorf("port %s, with a certificate %v: %v, want let in %v", c.port, c.pair != nil, err, c.ok)
		}
	}
}
