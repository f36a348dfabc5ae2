package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// The first argument alone selects a subcommand; output and exit codes are etcd's.
func TestSubcommand(t *testing.T) {
	defer func(was []func() *cobra.Command) { subcommands = was }(subcommands)
	subcommands = []func() *cobra.Command{func() *cobra.Command {
		relay := &cobra.Command{Use: "relay <subcommand>", Short: "relay related command"}
		code := 0
		start := &cobra.Command{Use: "start", RunE: program(func() int { return code })}
		start.Flags().IntVar(&code, "code", 0, "exit code")
		relay.AddCommand(start)
		return relay
	}}
	for _, tc := range []struct {
		args     string
		selected bool
		code     int
		out, err string // part of the output; "" is no output
	}{
		{args: ""},
		{args: "--name relay"},
		{args: "help relay"},
		{args: "completion bash"},
		{args: "relay", selected: true, out: "relay related command\n\nUsage:\n  etcd relay [command]"},
		{args: "relay other", selected: true, out: "Usage:"},
		{args: "relay start", selected: true},
		{args: "relay start --code 3", selected: true, code: 3},
		{args: "relay start --nope", selected: true, code: 1, err: "Error: unknown flag: --nope\nUsage:\n  etcd relay start [flags]\n"},
	} {
		var stdout, stderr strings.Builder
		code, selected := runSubcommand(strings.Fields(tc.args), &stdout, &stderr)
		if code != tc.code || selected != tc.selected {
			t.Errorf("%q: code %d, selected %v; want %d, %v", tc.args, code, selected, tc.code, tc.selected)
		}
		for _, p := range []struct{ got, want string }{{stdout.String(), tc.out}, {stderr.String(), tc.err}} {
			if !strings.Contains(p.got, p.want) || (p.want == "") != (p.got == "") {
				t.Errorf("%q: printed %q, want %q", tc.args, p.got, p.want)
			}
		}
		if tc.err != "" && !strings.HasSuffix(stderr.String(), "\nunknown flag: --nope") {
			t.Errorf("%q: the error does not come again at the end: %q", tc.args, stderr.String())
		}
	}
}
