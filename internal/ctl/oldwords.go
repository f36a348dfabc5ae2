package ctl

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// oldCommands are the commands that only the v2 API has, with the nearest command of the v3
// API. Empty: there is none.
var oldCommands = map[string]string{
	"ls":             "etcdctl get --prefix --keys-only KEY",
	"set":            "etcdctl put KEY VALUE",
	"mk":             "etcdctl put KEY VALUE, in a txn that compares create(KEY) = 0",
	"update":         "etcdctl put KEY VALUE, in a txn that compares create(KEY) > 0",
	"rm":             "etcdctl del KEY",
	"rmdir":          "etcdctl del --prefix KEY/",
	"mkdir":          "",
	"setdir":         "",
	"updatedir":      "",
	"exec-watch":     "etcdctl watch KEY -- COMMAND",
	"cluster-health": "etcdctl endpoint health --cluster",
	"backup":         "etcdctl snapshot save FILE, or etcdutl backup for a directory",
	"import":         "etcdctl snapshot save, and etcdutl snapshot restore",
}

// oldFlags are flags of the v2 API with their current names. Empty: the flag is not needed
// any more.
var oldFlags = map[string]string{
	"--ca-file": "--cacert", "--cert-file": "--cert", "--key-file": "--key",
	"--username": "--user", "-u": "--user", "--output": "--write-out", "-o": "-w",
	"--peers": "--endpoints", "-C": "--endpoints", "--endpoint": "--endpoints",
	"--timeout": "--dial-timeout", "--total-timeout": "--command-timeout",
	"-D": "--discovery-srv", "--no-sync": "", "--quorum": "", "-q": "",
}

// explainOldCommand prints on w what replaces the v2 command that cobra's error err is
// about; or the flag in args that made cobra take a flag's value for the command.
func explainOldCommand(w io.Writer, err error, args []string) {
	rest, ok := strings.CutPrefix(err.Error(), `unknown command "`)
	if !ok {
		return
	}
	word, _, _ := strings.Cut(rest, `"`)
	today, old := oldCommands[word]
	if !old {
		for _, arg := range args {
			name, _, _ := strings.Cut(arg, "=")
			if text := explainOldFlag(name); text != "" {
				fmt.Fprintln(w, text)
				return
			}
		}
		return
	}
	fmt.Fprintf(w, "%q is a command of the v2 API: ETCDCTL_API=2 etcdctl %s\n", word, word)
	if today != "" {
		fmt.Fprintf(w, "What comes nearest to it in the v3 API: %s\n", today)
	} else {
		fmt.Fprintln(w, "The v3 API has nothing like it: its keys have no directories above them.")
	}
}

// explainOldFlags adds the current name to an error about a flag of the v2 API. Other
// errors go to root's former function.
func explainOldFlags(root *cobra.Command) {
	before := root.FlagErrorFunc()
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		name, ok := strings.CutPrefix(err.Error(), "unknown flag: ")
		if rest, short := strings.CutPrefix(err.Error(), "unknown shorthand flag: '"); short {
			letter, _, _ := strings.Cut(rest, "'")
			name, ok = "-"+letter, true
		}
		if text := explainOldFlag(name); ok && text != "" {
			return fmt.Errorf("%w\n%s", err, text)
		}
		return before(cmd, err)
	})
}

// explainOldFlag returns "" for a flag that the v2 API did not have.
func explainOldFlag(name string) string {
	switch today, old := oldFlags[name]; {
	case !old:
		return ""
	case today == "":
		return name + " is a flag of the v2 API (ETCDCTL_API=2); leave it out here"
	default:
		return name + " is a flag of the v2 API (ETCDCTL_API=2); here it is " + today
	}
}
