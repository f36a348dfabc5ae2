package config

import (
	"fmt"
	"io"
	"runtime"

	"quorate/internal/build"
)

// PrintVersion writes etcd's four lines (scripts read the third word of the first line),
// then the lines about this build.
func PrintVersion(w io.Writer) {
	fmt.Fprintf(w, "etcd Version: %s\n", build.EtcdVersion)
	fmt.Fprintf(w, "Git SHA: %s\n", build.Commit())
	fmt.Fprintf(w, "Go Version: %s\n", runtime.Version())
	fmt.Fprintf(w, "Go OS/Arch: %s/%s\n", runtime.GOOS, runtime.GOARCH)
	build.Print(w)
}
