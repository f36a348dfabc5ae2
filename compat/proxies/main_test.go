// Package proxies runs what sits between clients and a cluster, etcd gateway and etcd grpc-proxy, as processes
// of both programs in front of the same members.
//
// In: the binaries of this tree, and real etcd 3.7. Out: test failures that show the behaviour of either.
// Invariant: both get the same arguments and the same requests, and what a person or a script sees (texts, exit
// codes, log lines, answers) is compared.
package proxies

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
	ctlFlag  = flag.String("etcdctl", "", "etcdctl binary; empty: built from this tree")
	realFlag = flag.String("real", "../bin/etcd37", "real etcd 3.7")
	required = flag.Bool("privileged", false, "fail, instead of leaving a test out, where this machine forbids network namespaces")
)

var etcd, etcdctl, realEtcd string // paths of the binaries

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 120 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "proxies")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for _, b := range []struct{ given, command, path *string }{{etcdFlag, new("etcd"), &etcd}, {ctlFlag, new("etcdctl"), &etcdctl}} {
		if *b.path, err = child.Binary(*b.given, *b.command, dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if realEtcd, err = filepath.Abs(*realFlag); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// both are the programs under comparison.
func both() map[string]string { return map[string]string{"ours": etcd, "real": realEtcd} }
