// Command etcdctl reads and changes what an etcd cluster holds, and looks after
// the cluster. With ETCDCTL_API=2 it speaks the v2 API.
package main

import (
	"os"

	"quorate/internal/ctl"
	"quorate/internal/ctl/ctlv2"
)

func main() {
	p := ctl.OSProcess()
	run := ctl.Run
	if p.Getenv(ctlv2.Env) == ctlv2.API {
		run = ctlv2.Run
	}
	os.Exit(run(p))
}
