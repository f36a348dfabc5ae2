package config

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// EtcdVersion is the level of etcd whose contract the server keeps. It is what
// --version, /version and the Status call report.
const EtcdVersion = "3.7.3"

// QuorateVersion is the version of this server. Release builds set it with
// -ldflags "-X quorate/internal/config.QuorateVersion=...".
var QuorateVersion = "0.1.0-dev"

// gitSHA is set the same way; without it the revision comes from the build
// information that the go command embeds.
var gitSHA string

// GitSHA returns the revision that was built, or a text beginning with
// "Not provided".
func GitSHA() string {
	if gitSHA != "" {
		return gitSHA
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 9 {
				return s.Value[:9]
			}
		}
	}
	return "Not provided (built without version control information)"
}

// PrintVersion writes etcd's four lines, in which scripts look for the third
// word of the first, and one with the version of this server.
func PrintVersion(w io.Writer) {
	fmt.Fprintf(w, "etcd Version: %s\n", EtcdVersion)
	fmt.Fprintf(w, "Git SHA: %s\n", GitSHA())
	fmt.Fprintf(w, "Go Version: %s\n", runtime.Version())
	fmt.Fprintf(w, "Go OS/Arch: %s/%s\n", runtime.GOOS, runtime.GOARCH)
	fmt.Fprintf(w, "Quorate Version: %s\n", QuorateVersion)
}
