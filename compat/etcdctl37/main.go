// Command etcdctl37 is real etcdctl 3.7.3, built from its published module. The
// compatibility lanes compare its output with that of the etcdctl under test.
package main

import "go.etcd.io/etcd/etcdctl/v3/ctlv3"

func main() {
	ctlv3.MustStart()
}
