// Package build says which build of the programs this is.
//
// In: what the linker sets and what the go command embeds. Out: the version,
// the commit and its date, and the lines of --version about them. Always true:
// the same binary gives the same answers, wherever and whenever it runs.
package build

import (
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"
)

// Version is the version of this server and its tools. Release builds set it,
// and the two below, with -ldflags "-X quorate/internal/build.Version=...".
// What stands here is the version that is being worked on.
var Version = "0.1.0-dev"

var (
	commit string
	date   string // of the commit, RFC 3339, UTC
)

// shortCommit is how many digits of a revision are shown.
const shortCommit = 9

// Commit returns the revision that was built, or a text beginning with
// "Not provided".
func Commit() string {
	if v := first(commit, setting("vcs.revision")); len(v) >= shortCommit {
		return v[:shortCommit]
	}
	return "Not provided (built without version control information)"
}

// Date returns when the revision was committed, or a text beginning with
// "Not provided".
func Date() string {
	v := first(date, setting("vcs.time"))
	if _, err := time.Parse(time.RFC3339, v); err != nil {
		return "Not provided (built without version control information)"
	}
	return v
}

// Print writes the lines of --version that etcd does not have.
func Print(w io.Writer) {
	fmt.Fprintf(w, "Quorate Version: %s\n", Version)
	fmt.Fprintf(w, "Commit Date: %s\n", Date())
}

// ToolVersion is what --version of etcdctl and etcdutl prints: the lines of
// their command version, which are etcd's and stay as they are for scripts, and
// those of the build.
func ToolVersion(tool string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s version: %s\nAPI version: %s\nGit SHA: %s\n", tool, EtcdVersion, APIVersion, Commit())
	Print(&b)
	return b.String()
}

func first(stamped, embedded string) string {
	if stamped != "" {
		return stamped
	}
	return embedded
}

func setting(key string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}
