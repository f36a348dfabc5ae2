package cluster

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"quorate/compat/child"
)

var (
	etcdFlag = flag.String("etcd", "", "server binary; empty: built from this tree")
	ctlFlag  = flag.String("etcdctl", "", "etcdctl binary; empty: built from this tree")
	duration = flag.Duration("duration", time.Minute, "how long members are killed and paused")
	seed     = flag.Uint64("seed", 0, "of the faults; 0: another one each time")
	required = flag.Bool("privileged", false, "fail, instead of leaving a test out, where this machine forbids network namespaces")
)

var etcd, etcdctl string // paths of the binaries

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 90 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cluster")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if etcd, err = child.Binary(*etcdFlag, "etcd", dir); err == nil {
		etcdctl, err = child.Binary(*ctlFlag, "etcdctl", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	if testing.Short() {
		*duration = min(*duration, 15*time.Second)
	}
	return m.Run()
}
