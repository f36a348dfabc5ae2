package kubernetes

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var (
	etcd      = flag.String("etcd", "../../bin/etcd", "server under test")
	etcdctl   = flag.String("etcdctl", "../../bin/etcdctl", "its command line")
	apiserver = flag.String("apiserver", "../bin/kube-apiserver", "a real kube-apiserver")
	realEtcd  = flag.String("real", "../bin/etcd37", "real etcd, for -compare")
	compare   = flag.Bool("compare", false, "do the same with real etcd and print the figures of both")
	required  = flag.Bool("privileged", false, "fail where namespaces are forbidden")
	keep      = flag.String("keep", "", "copy logs of failed and compared runs into this directory")

	deploy = "../../deploy/kubernetes"
)

// limit bounds everything that should happen soon; a run on a busy machine stays within it too.
const limit = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	for _, p := range []*string{etcd, etcdctl, apiserver, realEtcd, &deploy} {
		abs, err := filepath.Abs(*p)
		if err == nil && (p != realEtcd || *compare) {
			_, err = os.Stat(abs)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%v (make kubernetes builds what is needed)\n", err)
			os.Exit(1)
		}
		*p = abs
	}
	os.Exit(m.Run())
}
