// Package utl is etcdutl: the command line for the files of an etcd, which works
// without a server.
//
// In: arguments and standard streams. Out: what the command prints, and the exit code
// that Run returns.
//
// Always true: standard output carries the answer and nothing else, as etcdutl 3.7
// prints it; logs and errors go to standard error. Nothing here calls os.Exit or keeps
// state between two runs.
package utl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"go.etcd.io/etcd/client/pkg/v3/logutil"

	"quorate/internal/build"
	"quorate/internal/clock"
	"quorate/internal/datadir"
	"quorate/internal/raftlog"
	"quorate/internal/suggest"
)

func init() {
	// `etcdutl ver` is `etcdutl version`. cobra has this switch in a variable of its
	// package.
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

// Exit codes. Scripts depend on them; they are etcdutl's.
const (
	exitError      = 1
	exitBadFeature = 4
	exitBadArgs    = 128
)

// exitErr ends a command with an exit code, or with more to say than the error.
type exitErr struct {
	code  int
	err   error
	notes []string // further lines with hints
}

func (e *exitErr) Error() string { return e.err.Error() }
func (e *exitErr) Unwrap() error { return e.err }

func badArgs(format string, a ...any) error {
	return &exitErr{code: exitBadArgs, err: fmt.Errorf(format, a...)}
}

// app is one run of the tool.
type app struct {
	Process
	lg          *zap.Logger
	format      string        // --write-out
	lockTimeout time.Duration // 0 waits forever
	err         error         // of the command that ran
}

// Groups of commands. Each has one run of the tool, which they share: the process and the
// flags of all commands.
type (
	snapshotCommands struct{ *app } // snapshot restore and backup
	inspectCommands  struct{ *app } // snapshot status and hashkv
	migrateCommands  struct{ *app } // migrate
	defragCommands   struct{ *app } // defrag
	planCommands     struct{ *app } // cluster plan
	toolCommands     struct{ *app } // about the tool itself
)

// Run executes one command line and returns the exit code of the process.
func Run(p Process) int {
	a := &app{Process: p, lg: newLogger(p.Stderr)}
	root := a.rootCommand()
	suggest.Help(a.Stderr, root)
	root.SetArgs(append([]string{}, p.Args...)) // for nil cobra would use os.Args
	cmd, err := root.ExecuteC()
	if err != nil {
		// cobra has printed the error, and a hint if there is no such command.
		if !strings.HasPrefix(err.Error(), "unknown command") {
			fmt.Fprintln(p.Stderr, cmd.UsageString())
		}
		return exitError
	}
	return a.report(a.err)
}

// report prints the error of a command and returns the exit code.
func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(a.Stderr, "Error:", err)
	var e *exitErr
	if errors.As(err, &e) {
		for _, n := range e.notes {
			fmt.Fprintln(a.Stderr, n)
		}
		return e.code
	}
	return exitError
}

// newLogger returns etcdutl's logger: human-readable lines on w.
func newLogger(w io.Writer) *zap.Logger {
	cfg := logutil.DefaultZapLoggerConfig.EncoderConfig
	cfg.EncodeTime = zapcore.RFC3339TimeEncoder
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(cfg), zapcore.Lock(zapcore.AddSync(w)), zapcore.InfoLevel)
	return zap.New(core, zap.AddCaller())
}

// runs makes f the body of a command. cobra does not see f's error, as it would print
// the usage for it.
func (a *app) runs(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) {
	return func(cmd *cobra.Command, args []string) { a.err = f(cmd, args) }
}

// patiently calls open until it succeeds, fails for a reason other than another process
// that holds the files, or --timeout expires.
func (a *app) patiently(open func() error) error {
	for start := clock.Now(); ; clock.Pause(50 * time.Millisecond) {
		err := open()
		if !errors.Is(err, datadir.ErrInUse) && !errors.Is(err, raftlog.ErrInUse) || a.lockTimeout > 0 && clock.Since(start) >= a.lockTimeout {
			return err
		}
	}
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "etcdutl",
		Short: "Works on the files of an etcd, without a server.",
		Example: strings.Join([]string{
			"  etcdutl snapshot status backup.db -w table",
			"  etcdutl snapshot restore backup.db --data-dir /var/lib/etcd",
			"  etcdutl migrate --to-etcd --data-dir /var/lib/etcd"}, "\n"),
		SilenceUsage: true,
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)

	fs := root.PersistentFlags()
	fs.DurationVar(&a.lockTimeout, "timeout", 10*time.Second, "how long to wait for another process to release the database (0: without limit)")
	fs.StringVarP(&a.format, "write-out", "w", "simple", "output format: fields, json, protobuf, simple or table")
	formats := cobra.FixedCompletions([]string{"fields", "json", "protobuf", "simple", "table"}, cobra.ShellCompDirectiveNoFileComp)
	if err := root.RegisterFlagCompletionFunc("write-out", formats); err != nil {
		panic(err) // the flag is registered above
	}
	root.Flags().Bool("version", false, "print the version, and which build this is")
	root.Version = build.ToolVersion("etcdutl")
	root.SetVersionTemplate("{{.Version}}")
	root.AddCommand(planCommands{a}.cluster(), snapshotCommands{a}.snapshot(), inspectCommands{a}.hashKVCommand(), defragCommands{a}.defragCommand(), migrateCommands{a}.migrate(), memberCommands{a}.member(), snapshotCommands{a}.backup(),
		toolCommands{a}.version(), toolCommands{a}.completion())
	suggest.Flags(root)
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		suggest.Command(a.Stderr, cmd)
		help(cmd, args)
	})
	return root
}

// Command returns the whole command line, for tools that use its help. It is not meant
// to be run.
func Command() *cobra.Command { return new(app).rootCommand() }

func (a toolCommands) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Prints the version of etcdutl and of the API it belongs to",
		Example: "  etcdutl version",
		Run: a.runs(func(*cobra.Command, []string) error {
			fmt.Fprintln(a.Stdout, "etcdutl version:", build.EtcdVersion)
			fmt.Fprintln(a.Stdout, "API version:", build.APIVersion)
			return nil
		}),
	}
}

func (a toolCommands) completion() *cobra.Command {
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
