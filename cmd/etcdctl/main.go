// Command etcdctl reads and changes the contents of an etcd cluster, and administers the
// cluster. With ETCDCTL_API=2 it uses the v2 API.
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
