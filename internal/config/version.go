package config

import (
	"fmt"
	"io"
	"runtime"

	"quorate/internal/build"
)

// PrintVersion writes etcd's four lines, in which scripts look for the third
// word of the first, and those about this server.
func PrintVersion(w io.Writer) {
	fmt.Fprintf(w, "etcd Version: %s\n", build.EtcdVersion)
	fmt.Fprintf(w, "Git SHA: %s\n", build.Commit())
	fmt.Fprintf(w, "Go Version: %s\n", runtime.Version())
	fmt.Fprintf(w, "Go OS/Arch: %s/%s\n", runtime.GOOS, runtime.GOARCH)
	build.Print(w)
}
