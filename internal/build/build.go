// Package build identifies the build of the programs.
//
// In: what the linker sets and the go command embeds. Out: version, commit, commit
// date, and their lines of --version. Always true: the same binary always gives the same
// answers.
package build

import (
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"
)

// Version is the version of this server and its tools. Release builds set it and the two
// variables below with -ldflags "-X quorate/internal/build.Version=...". The value here is
// the version under development.
var Version = "0.1.0-dev"

var (
	commit string
	date   string // of the commit, RFC 3339, UTC
)

// shortCommit is the number of digits of a commit hash that are shown.
const shortCommit = 9

// Commit returns the commit hash of the build, or a text starting with "Not provided".
func Commit() string {
	if v := first(commit, setting("vcs.revision")); len(v) >= shortCommit {
		return v[:shortCommit]
	}
	return "Not provided (built without version control information)"
}

// Date returns the commit date, or a text starting with "Not provided".
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

// ToolVersion returns the output of --version for etcdctl and etcdutl: the lines of their
// version command, which are etcd's and unchanged for scripts, followed by those of Print.
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
