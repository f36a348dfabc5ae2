// Command etcdctl reads and changes what an etcd cluster holds, and looks after
// the cluster.
package main

import (
	"os"

	"quorate/internal/ctl"
)

func main() { os.Exit(ctl.Run(ctl.OSProcess())) }
