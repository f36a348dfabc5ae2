package chaos

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"quorate/compat/child"
)

var (
	etcdFlag = flag.String("etcd", "", "server binary; empty: built from this tree")
	realFlag = flag.String("real", "../bin/etcd37", "real etcd 3.7")
	duration = flag.Duration("duration", time.Minute, "how long faults are injected")
	seedFlag = flag.Uint64("seed", 0, "of the faults; 0: another one each time")
	keep     = flag.String("keep", "", "where data and logs of a failed run go; empty: a directory below the temporary one")
	required = flag.Bool("privileged", false, "fail, instead of leaving a test out, where this machine forbids network namespaces")
)

var ours, real string // paths of the binaries

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(tellTime) != "" {
		printTime()
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "chaos")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if ours, err = child.Binary(*etcdFlag, "etcd", dir); err == nil {
		if real, err = filepath.Abs(*realFlag); err == nil {
			_, err = os.Stat(real)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if *seedFlag == 0 {
		*seedFlag = uint64(time.Now().UnixNano())
	}
	return m.Run()
}
