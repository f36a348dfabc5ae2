// Command etcd36 is real etcd 3.6.16, built from its published server module. It takes etcd's own flags; the
// compatibility lanes run it next to the server under test.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
