// Package ctlv2 is etcdctl with ETCDCTL_API=2: the commands of the v2 API, as of etcd 3.5,
// the last release that has them.
//
// In: a [ctl.Process], whose command line is parsed as Go's flag package does. Out: what
// the command prints, its requests of the v2 API, and the exit code of the process.
//
// Always true: output, error texts and exit codes are those of etcdctl 3.5. Help texts are
// our own, and additions to etcdctl's errors are further lines on standard error.
package ctlv2

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	client "go.etcd.io/etcd/client/v2"

	"quorate/internal/build"
	"quorate/internal/ctl"
	"quorate/internal/suggest"
)

// Env is the variable that selects the API, API its value for this package. etcdctl 3.7
// ignores any other value.
const (
	Env = "ETCDCTL_API"
	API = "2"
)

// Exit codes. They are etcdctl's; scripts depend on them.
const (
	exitError         = 1
	exitBadConnection = 2
	exitNoSuchCommand = 3
	exitServerError   = 4
	exitNotHealthy    = 5
	exitBadArgs       = 128
)

// failure ends a command with an exit code. Its text goes to standard error unchanged; if
// it is empty, everything has been printed.
type failure struct {
	code int
	text string
}

func (f *failure) Error() string { return f.text }

// plain is a failure with code 1 and the given text only.
func plain(format string, a ...any) error {
	return &failure{exitError, fmt.Sprintf(format, a...) + "\n"}
}

// badArgs rejects the arguments of a command.
func badArgs(text string) error { return refused(exitBadArgs, errors.New(text)) }

// refused ends a command with the error of a request. The two spaces are etcdctl's.
func refused(code int, err error) error {
	text := fmt.Sprintln("Error: ", err)
	var cluster *client.ClusterError
	if errors.As(err, &cluster) {
		text += cluster.Detail() + "\n"
	}
	if errors.Is(err, client.ErrInvalidJSON) {
		text += "Members answer the v2 API if they were started with --enable-v2; for the v3 API, leave ETCDCTL_API unset.\n"
	}
	return &failure{code, text}
}

// connection is how to reach the cluster: the process, and the flags in front of the
// command.
type connection struct {
	ctl.Process

	debug, noSync, insecureDiscovery bool
	output                           string
	discoverySRV                     string
	endpoints, endpoint, peers       string
	certFile, keyFile, caFile        string
	username                         string
	timeout, totalTimeout            time.Duration
}

// tool is one run of etcdctl.
type tool struct {
	connection
	code int
}

// Groups of commands. The commands of a run share one tool.
type (
	keyCommands    struct{ *tool }       // on keys and directories
	watchCommands  struct{ keyCommands } // watch and exec-watch
	memberCommands struct{ *tool }       // member and cluster-health
	authCommands   struct{ *tool }       // user, role and auth
	copyCommands   struct{ *tool }       // backup and import
)

// globals are the flags in front of the command.
func (t *connection) globals() *flagSet {
	fs := newFlagSet("etcdctl")
	fs.BoolVar(&t.debug, "debug", false, "print each request as a command line of curl, on standard error")
	fs.BoolVar(&t.noSync, "no-sync", false, "talk to the given endpoints only, not to those that the members advertise")
	fs.StringVar(&t.output, "output", "simple", "output format: simple, extended or json")
	fs.alias("o", "output")
	fs.StringVar(&t.discoverySRV, "discovery-srv", "", "domain whose SRV records list the endpoints")
	fs.alias("D", "discovery-srv")
	fs.BoolVar(&t.insecureDiscovery, "insecure-discovery", false, "accept SRV records of endpoints without TLS")
	fs.StringVar(&t.peers, "peers", "", "old name of --endpoints")
	fs.alias("C", "peers")
	fs.StringVar(&t.endpoint, "endpoint", "", "old name of --endpoints")
	fs.StringVar(&t.endpoints, "endpoints", "", "where the members listen, comma separated (default "+defaultEndpoints+")")
	fs.StringVar(&t.certFile, "cert-file", "", "file with the client's TLS certificate")
	fs.StringVar(&t.keyFile, "key-file", "", "file with the client's TLS key")
	fs.StringVar(&t.caFile, "ca-file", "", "file with the CA certificates that servers are verified against")
	fs.StringVar(&t.username, "username", "", "name[:password] to authenticate as (asks for a password if there is none)")
	fs.alias("u", "username")
	fs.DurationVar(&t.timeout, "timeout", 2*time.Second, "timeout for one request, including the connection")
	fs.DurationVar(&t.totalTimeout, "total-timeout", 5*time.Second, "timeout for a command; a watch has none")
	return fs
}

// Run executes one command line and returns the exit code of the process.
func Run(p ctl.Process) int {
	// The v2 commands must be written in full. cobra has this switch in a package variable,
	// which ctl turns on.
	cobra.EnablePrefixMatching = false

	// The program that exec-watch starts may be another etcdctl.
	p.Env = slices.DeleteFunc(slices.Clone(p.Env), func(e string) bool { return strings.HasPrefix(e, Env+"=") })
	t := &tool{connection: connection{Process: p}}
	globals := t.globals()
	showVersion := globals.Bool("version", false, "print the version")
	globals.alias("v", "version")
	root := t.root()
	globals.show(root)

	if err := globals.parse(p.Args, false); err != nil {
		t.report(t.misused(root, err))
		return t.code
	}
	switch {
	case globals.help:
		_ = root.Help() // output that Stdout does not accept is lost
		return 0
	case *showVersion:
		fmt.Fprintln(p.Stdout, "etcdctl version:", build.EtcdVersion)
		fmt.Fprintln(p.Stdout, "API version: 2")
		return 0
	}
	root.SetArgs(append([]string{}, globals.Args()...)) // nil would make cobra use os.Args
	if err := root.Execute(); err != nil {
		t.report(plain("%v", err))
	}
	return t.code
}

func (t *tool) report(err error) {
	if err == nil {
		return
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{exitError, err.Error() + "\n"}
	}
	t.code = f.code
	fmt.Fprint(t.Stderr, f.text)
}

// misused prints the usage of a command after what was wrong with its flags.
func (t *tool) misused(cmd *cobra.Command, err error) error {
	head := "Incorrect Usage: "
	if cmd.HasSubCommands() {
		head = "Incorrect Usage. "
		if clash := new(clashError); errors.As(err, &clash) {
			head = ""
		}
	}
	fmt.Fprintf(t.Stdout, "%s%v\n\n", head, err)
	_ = cmd.Help()
	return plain("%v", err)
}

func (t *tool) root() *cobra.Command {
	keys, members, accounts, copies := keyCommands{t}, memberCommands{t}, authCommands{t}, copyCommands{t}
	watches := watchCommands{keys}
	root := t.group("etcdctl", "Reads and changes what a cluster holds under the v2 API. Flags for all commands stand before the command.",
		keys.get(), keys.ls(), keys.set(), keys.mk(), keys.update(), keys.rm(),
		keys.mkdir(), keys.setdir(), keys.updatedir(), keys.rmdir(),
		watches.watch(), watches.execWatch(),
		members.clusterHealth(), members.member(), copies.backup(), copies.importSnap(),
		accounts.user(), accounts.role(), accounts.auth())
	root.CompletionOptions.DisableDefaultCmd = true
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(t.Stdin)
	root.SetOut(t.Stdout)
	root.SetErr(t.Stderr)
	root.SetHelpCommand(&cobra.Command{
		Use: "help [command]", Aliases: []string{"h"}, Short: "Shows the commands, or how one of them is used",
		DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) {
			if len(args) == 0 {
				_ = root.Help()
				return
			}
			if cmd := child(root, args[0]); cmd != nil {
				_ = cmd.Help()
				return
			}
			t.report(t.unknown(root, args[0]))
		},
	})
	return root
}

// group returns a command that only has subcommands.
func (t *tool) group(name, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, DisableFlagParsing: true, Args: cobra.ArbitraryArgs}
	fs := newFlagSet(name)
	cmd.Run = func(cmd *cobra.Command, args []string) {
		if err := fs.parse(args, false); err != nil {
			t.report(t.misused(cmd, err))
			return
		}
		if args = fs.Args(); fs.help || len(args) == 0 {
			_ = cmd.Help()
			return
		}
		if args[0] != "help" && args[0] != "h" {
			t.report(t.unknown(cmd, args[0]))
			return
		}
		if len(args) == 1 {
			_ = cmd.Help()
		} else if c := child(cmd, args[1]); c != nil {
			_ = c.Help()
		} else {
			t.report(t.unknown(cmd, args[1]))
		}
	}
	cmd.AddCommand(below...)
	return cmd
}

// leaf returns a command that does something. flags adds to its flags and may be nil.
func (t *tool) leaf(use, short string, flags func(fs *flagSet), run func(args []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, DisableFlagParsing: true, DisableFlagsInUseLine: true}
	fs := newFlagSet(cmd.Name())
	if flags != nil {
		flags(fs)
	}
	fs.show(cmd)
	cmd.Run = func(cmd *cobra.Command, args []string) {
		switch err := fs.parse(args, true); {
		case err != nil:
			t.report(t.misused(cmd, err))
		case fs.help:
			_ = cmd.Help()
		default:
			t.report(run(fs.Args()))
		}
	}
	return cmd
}

func child(cmd *cobra.Command, name string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == name || c.HasAlias(name) {
			return c
		}
	}
	return nil
}

// unknown rejects a word that is not a command below cmd, and suggests one.
func (t *tool) unknown(cmd *cobra.Command, word string) error {
	text := fmt.Sprintf("No help topic for '%s'\n", word)
	if !cmd.HasParent() && ctl.Knows(word) {
		text += fmt.Sprintf("%q is a command of the v3 API: leave ETCDCTL_API unset for it.\n", word)
	} else if near := suggest.Below(cmd, word); near != "" {
		text += fmt.Sprintf("Did you mean %q?\n", near)
	}
	return &failure{exitNoSuchCommand, text}
}
