package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// subcommands are the programs besides the server. The name of one as first
// argument selects it; anything else there is the server's, which knows no
// subcommands.
var subcommands = []func() *cobra.Command{
	gatewayCommand,
	grpcProxyCommand,
}

// exitCode ends a subcommand that has said itself what is wrong.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// runSubcommand runs the one that args, without the program's name, select, and
// returns its exit code. Without one, selected is false. Mistakes in the flags
// are printed as etcd prints them: the error, the usage, and the error once more.
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
		// Not left to cobra, which would put the usage where help goes.
		fmt.Fprintln(stderr, c.UsageString())
		fmt.Fprint(stderr, err)
		return 1, true
	}
	return 0, true
}

// program returns a RunE that gives run's exit code to runSubcommand. What is
// wrong run says itself.
func program(run func() (code int)) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		c.SilenceErrors = true
		if code := run(); code != 0 {
			return exitCode(code)
		}
		return nil
	}
}
