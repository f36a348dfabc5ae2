// Package utl is etcdutl: the command line for an etcd's files, which works
// without a server.
//
// In: arguments and standard streams. Out: what the command prints, and the
// exit code that Run returns.
//
// Always true: standard output carries the answer and nothing else, as etcdutl
// 3.7 prints it; logs and errors go to standard error. Nothing here calls
// os.Exit or keeps state between two runs.
package utl

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"go.etcd.io/etcd/api/v3/version"
)

func init() {
	// `etcdutl ver` is `etcdutl version`. cobra keeps this switch in a variable
	// of its package.
	cobra.EnablePrefixMatching = true
}

// Process is everything of the operating-system process that a command uses.
type Process struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// OSProcess is the process this program runs as.
func OSProcess() Process {
	return Process{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
}

// app is one run of the tool.
type app struct {
	Process
	format      string        // --write-out
	lockTimeout time.Duration // 0 waits for ever
	err         error         // of the command that ran
}

// Run executes one command line and returns the exit code of the process.
func Run(p Process) int {
	a := &app{Process: p}
	root := a.rootCommand()
	root.SetArgs(append([]string{}, p.Args...)) // of nil cobra would make os.Args
	cmd, err := root.ExecuteC()
	if err != nil {
		// cobra has printed the error, and where to look when there is no such
		// command.
		if !strings.HasPrefix(err.Error(), "unknown command") {
			fmt.Fprintln(p.Stderr, cmd.UsageString())
		}
		return 1
	}
	if a.err != nil {
		fmt.Fprintln(p.Stderr, "Error:", a.err)
		return 1
	}
	return 0
}

// runs makes f the body of a command. cobra does not see f's error, it would
// print usage for it.
func (a *app) runs(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) {
	return func(cmd *cobra.Command, args []string) { a.err = f(cmd, args) }
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:          "etcdutl",
		Short:        "Looks after the files of an etcd, without a server.",
		Example:      "  etcdutl version",
		SilenceUsage: true,
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)

	fs := root.PersistentFlags()
	fs.DurationVar(&a.lockTimeout, "timeout", 10*time.Second, "how long to wait for another process to let go of the database (0: for ever)")
	fs.StringVarP(&a.format, "write-out", "w", "simple", "output format: fields, json, protobuf, simple or table")
	formats := cobra.FixedCompletions([]string{"fields", "json", "protobuf", "simple", "table"}, cobra.ShellCompDirectiveNoFileComp)
	if err := root.RegisterFlagCompletionFunc("write-out", formats); err != nil {
		panic(err) // the flag is registered above
	}
	root.AddCommand(a.versionCommand(), a.completionCommand())
	return root
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Prints the version of etcdutl and of the API it belongs to",
		Example: "  etcdutl version",
		Run: a.runs(func(*cobra.Command, []string) error {
			fmt.Fprintln(a.Stdout, "etcdutl version:", version.Version)
			fmt.Fprintln(a.Stdout, "API version:", version.APIVersion)
			return nil
		}),
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion [bash|zsh|fish|powershell]",
		Short: "Prints a script that completes etcdutl's commands and flags in a shell",
		Long: strings.TrimSpace(`
Prints a script that completes etcdutl's commands and flags in a shell.

bash        etcdutl completion bash > /etc/bash_completion.d/etcdutl
zsh         etcdutl completion zsh > "${fpath[1]}/_etcdutl"
fish        etcdutl completion fish > ~/.config/fish/completions/etcdutl.fish
powershell  etcdutl completion powershell | Out-String | Invoke-Expression

A new shell reads the script. zsh needs "autoload -U compinit; compinit" in ~/.zshrc.`),
		Example:               "  source <(etcdutl completion bash)",
		DisableFlagsInUseLine: true,
		ValidArgs:             []string{"bash", "zsh", "fish", "powershell"},
		Args:                  cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			case "fish":
				return root.GenFishCompletion(a.Stdout, true)
			default:
				return root.GenPowerShellCompletionWithDesc(a.Stdout)
			}
		}),
	}
}
