package mixed

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
	realDir  = flag.String("real", "../bin", "directory of etcd37, etcd36 and etcd35")
	seedFlag = flag.Uint64("seed", 0, "of load and faults; 0: another one each time")
	keep     = flag.String("keep", "", "directory below which data and logs are left")
	longFlag = flag.Bool("long", false, "also clusters of five, and every version both ways")
)

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 2 * time.Minute

// kind is a kind of server that a member can be.
type kind struct {
	name    string
	binary  string
	cluster string // version of a cluster in which this is the oldest kind
	catchUp string // flag for the number of entries that stay in the log for slow followers
}

var (
	ours   = &kind{name: "ours", cluster: "3.7.0", catchUp: "--snapshot-catchup-entries"}
	etcd37 = &kind{name: "etcd37", cluster: "3.7.0", catchUp: "--snapshot-catchup-entries"}
	etcd36 = &kind{name: "etcd36", cluster: "3.6.0", catchUp: "--snapshot-catchup-entries"}
	etcd35 = &kind{name: "etcd35", cluster: "3.5.0", catchUp: "--experimental-snapshot-catchup-entries"}
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "mixed")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if ours.binary, err = child.Binary(*etcdFlag, "etcd", dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, k := range []*kind{etcd37, etcd36, etcd35} {
		if k.binary, err = filepath.Abs(filepath.Join(*realDir, k.name)); err == nil {
			_, err = os.Stat(k.binary)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "no real etcd (make -C compat builds it): %v\n", err)
			return 1
		}
	}
	return m.Run()
}

// newSeed logs the seed of a test, so that it can be run again.
func newSeed(t *testing.T) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	return seed
}

// long restricts a test to runs with -long, because it takes minutes.
func long(t *testing.T) {
	t.Helper()
	if !*longFlag {
		t.Skip("runs with -args -long only")
	}
}
