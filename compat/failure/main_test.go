package failure

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
)

var (
	etcdFlag   = flag.String("etcd", "", "server binary; empty: built from this tree")
	realFlag   = flag.String("real", "../bin/etcd37", "real etcd to compare exit codes with; not compared when there is none")
	real35Flag = flag.String("real35", "../bin/etcd35", "real etcd 3.5, whose directory is taken over; not if there is none")
	required   = flag.Bool("privileged", false, "fail, instead of leaving a test out, where this machine forbids to mount a file system")
)

var etcd, etcdutl, real, real35 string // paths of the binaries; those of real etcd are empty if there is none

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "failure")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if etcd, err = child.Binary(*etcdFlag, "etcd", dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if etcdutl, err = child.Binary("", "etcdutl", dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for path, to := range map[string]*string{*realFlag: &real, *real35Flag: &real35} {
		if abs, err := filepath.Abs(path); err == nil {
			if _, err := os.Stat(abs); err == nil {
				*to = abs
			}
		}
	}
	return m.Run()
}

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 60 * time.Second

// site holds the directory and the addresses of one member.
type site struct {
	dir          string // holds everything
	data         string // --data-dir
	client, peer string // host:port
	more         []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	addrs, err := harness.FreeAddrs(4)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return &site{dir: dir, data: filepath.Join(dir, "data"), client: addrs[0], peer: addrs[1], more: addrs[2:]}
}

// args are the flags of a correct single member, followed by those that override them.
func (s *site) args(more ...string) []string {
	return append([]string{
		"--name=m0", "--data-dir=" + s.data,
		"--listen-client-urls=http://" + s.client, "--advertise-client-urls=http://" + s.client,
		"--listen-peer-urls=http://" + s.peer, "--initial-advertise-peer-urls=http://" + s.peer,
		"--initial-cluster=m0=http://" + s.peer,
	}, more...)
}

func (s *site) start(t *testing.T, binary string, more ...string) *child.Process {
	t.Helper()
	return child.Start(t, child.Config{Program: binary, Args: s.args(more...), Dir: filepath.Join(s.dir, "run")})
}

// serve starts a member that is expected to work, and returns once it serves.
func (s *site) serve(t *testing.T, more ...string) (*child.Process, *child.Client) {
	t.Helper()
	p := s.start(t, etcd, more...)
	c := child.Dial(t, s.client)
	child.Eventually(t, limit, "the member answers", func() error {
		if !p.Running() {
			t.Fatalf("the member ended with code %d:\n%s", p.Code(), p.Output())
		}
		_, _, err := c.GetWithin(2*time.Second, "any")
		return err
	})
	return p, c
}
