// Command etcdutl works on the files of an etcd member, without a server.
package main

import (
	"os"

	"quorate/internal/utl"
)

func main() { os.Exit(utl.Run(utl.OSProcess())) }
