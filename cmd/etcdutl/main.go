// Command etcdutl looks after the files of an etcd, without a server.
package main

import (
	"os"

	"quorate/internal/utl"
)

func main() { os.Exit(utl.Run(utl.OSProcess())) }
