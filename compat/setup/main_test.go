// Package setup shows that a person can set up a cluster: members that join a running cluster by one flag, and
// clusters that were planned by etcdutl.
//
// In: the binaries of this tree, and real etcd 3.7. Out: clusters of real processes on loopback addresses and in
// network namespaces. Invariant: what is started is what the documentation tells a person to type.
package setup

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
	etcdFlag   = flag.String("etcd", "", "server binary; empty: built from this tree")
	ctlFlag    = flag.String("etcdctl", "", "etcdctl binary; empty: built from this tree")
	utlFlag    = flag.String("etcdutl", "", "etcdutl binary; empty: built from this tree")
	realFlag   = flag.String("real", "../bin/etcd37", "real etcd 3.7")
	realFlag35 = flag.String("real35", "../bin/etcd35", "real etcd 3.5, which serves the v2 API")
	required   = flag.Bool("privileged", false, "fail, instead of leaving a test out, where this machine forbids network namespaces")
)

var etcd, etcdctl, etcdutl string // paths of the binaries

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 120 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "setup")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for _, b := range []struct{ given, command, path *string }{
		{etcdFlag, new("etcd"), &etcd}, {ctlFlag, new("etcdctl"), &etcdctl}, {utlFlag, new("etcdutl"), &etcdutl},
	} {
		if *b.path, err = child.Binary(*b.given, *b.command, dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	for _, path := range []*string{realFlag, realFlag35} {
		if *path, err = filepath.Abs(*path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}
