// Package ctl is etcdctl: the command line of an etcd client.
//
// In: a Process (arguments, environment, standard streams). Out: what the command prints on
// those streams and the exit code that Run returns.
//
// Always true: standard output carries the answer and nothing else, in the format of
// --write-out and byte for byte as etcdctl 3.7 prints it; warnings, logs and errors go to
// standard error; the first line of an error is "Error: " and etcd's message. Nothing here
// calls os.Exit or keeps state between two runs, so that a whole command can run inside a
// test.
package ctl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"go.etcd.io/etcd/client/pkg/v3/logutil"

	"quorate/internal/suggest"
)

// Process is the part of the operating-system process that a command uses.
type Process struct {
	Args   []string // without the program's name
	Env    []string // as os.Environ
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	// Notify relays signals as signal.Notify does. Nil is signal.Notify.
	Notify func(c chan<- os.Signal, sig ...os.Signal)
}

// OSProcess returns the process that this program runs as.
func OSProcess() Process {
	return Process{Args: os.Args[1:], Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
}

// Getenv is os.Getenv for p.Env.
func (p Process) Getenv(name string) string {
	for _, e := range p.Env {
		if k, v, ok := strings.Cut(e, "="); ok && k == name {
			return v
		}
	}
	return ""
}

// Exit codes. They are etcdctl's; scripts depend on them.
const (
	exitOK            = 0
	exitError         = 1
	exitBadConnection = 2
	exitInvalidInput  = 3
	exitBadFeature    = 4
	exitInterrupted   = 5
	exitBadArgs       = 128
	exitSignaled      = 255 // of a command under lock that was killed by a signal
)

// exitErr ends a command with an exit code. If err is nil, everything has been printed on
// standard error already.
type exitErr struct {
	code  int
	err   error
	notes []string // further lines with hints
}

func (e *exitErr) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitErr) Unwrap() error { return e.err }

// fail returns an error that ends the command with code.
func fail(code int, err error) error { return &exitErr{code: code, err: err} }

// badArgs is fail for invalid arguments.
func badArgs(format string, a ...any) error { return fail(exitBadArgs, fmt.Errorf(format, a...)) }

// app is one run of the tool.
type app struct {
	Process
	global globalFlags
	lg     *zap.Logger
	code   int
}

// Groups of commands. Each has one run of the tool, which they share: the process, the
// global flags and the log.
type (
	keyCommands         struct{ *app } // on keys: put, get, del, txn and compaction
	watchCommands       struct{ *app } // watch, on the command line and interactive
	leaseCommands       struct{ *app } // subcommands of lease
	memberCommands      struct{ *app } // subcommands of member
	endpointCommands    struct{ *app } // subcommands of endpoint
	maintenanceCommands struct{ *app } // alarm, defrag, move-leader, snapshot and downgrade
	checkCommands       struct{ *app } // subcommands of check
	mirrorCommands      struct{ *app } // make-mirror
	lockCommands        struct{ *app } // lock and elect
	authCommands        struct{ *app } // subcommands of auth
	userCommands        struct{ *app } // subcommands of user
	roleCommands        struct{ *app } // subcommands of role
	toolCommands        struct{ *app } // about the tool itself
)

// Run executes one command line and returns the exit code of the process.
func Run(p Process) int {
	a := &app{Process: p}
	a.lg = newLogger(p.Stderr, zapcore.InfoLevel)

	root := a.rootCommand()
	suggest.Help(a.Stderr, root)
	root.SetArgs(append([]string{}, p.Args...)) // nil would make cobra use os.Args
	cmd, err := root.ExecuteC()
	if err != nil {
		// cobra has printed the error. If there is no such command it also points at
		// --help; for a known command the usage helps.
		if !strings.HasPrefix(err.Error(), "unknown command") {
			fmt.Fprintln(p.Stderr, cmd.UsageString())
		}
		explainOldCommand(p.Stderr, err, p.Args)
		return exitError
	}
	return a.code
}

// runs makes f the body of a command and turns its error into the error line and the exit
// code. cobra never sees these errors; it would print the usage for them.
func (a *app) runs(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) {
	return func(cmd *cobra.Command, args []string) {
		a.code = a.report(f(cmd, args))
	}
}

func (a *app) report(err error) int {
	if err == nil {
		return exitOK
	}
	code := exitError
	var e *exitErr
	if errors.As(err, &e) {
		code = e.code
		if e.err == nil {
			return code
		}
	}
	fmt.Fprintln(a.Stderr, "Error:", err)
	if e != nil {
		for _, n := range e.notes {
			fmt.Fprintln(a.Stderr, n)
		}
	}
	return code
}

// newLogger returns etcd's default logger: JSON lines on w.
func newLogger(w io.Writer, level zapcore.LevelEnabler) *zap.Logger {
	enc := zapcore.NewJSONEncoder(logutil.DefaultZapLoggerConfig.EncoderConfig)
	core := zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), level)
	return zap.New(core, zap.AddCaller(), zap.AddStacktrace(zapcore.ErrorLevel))
}
