package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// subcommands are the programs other than the server, selected by the first argument. Any
// other first argument belongs to the server, which has no subcommands.
var subcommands = []func() *cobra.Command{
	gatewayCommand,
	grpcProxyCommand,
}

// exitCode ends a subcommand that has already reported its error.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// runSubcommand runs the subcommand that args, without the program's name, selects, and
// returns its exit code. If there is none, selected is false. Mistakes in the flags are
// printed as etcd prints them: the error, the usage, and the error again.
func runSubcommand(args []string, stdout, stderr io.Writer) (code int, selected bool) {
	root := &cobra.Command{Use: "etcd", Short: "etcd server", SilenceUsage: true}
	for _, command := range subcommands {
		c := command()
		root.AddCommand(c)
		selected = selected || len(args) > 0 && args[0] == c.Name()
	}
	if !selected {
		return 0, false
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	c, err := root.ExecuteC()
	if own := exitCode(0); errors.As(err, &own) {
		return int(own), true
	}
	if err != nil {
		// Not left to cobra, which would print the usage where help goes.
		fmt.Fprintln(stderr, c.UsageString())
		fmt.Fprint(stderr, err)
		return 1, true
	}
	return 0, true
}

// program returns a RunE that passes run's exit code to runSubcommand. run reports its own
// errors.
func program(run func() (code int)) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		c.SilenceErrors = true
		if code := run(); code != 0 {
			return exitCode(code)
		}
		return nil
	}
}
