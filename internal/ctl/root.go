package ctl

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"quorate/internal/build"
	"quorate/internal/suggest"
)

func init() {
	// `etcdctl mem l` is `etcdctl member list`. cobra has this switch in a package
	// variable.
	cobra.EnablePrefixMatching = true
}

const (
	groupKeys    = "keys"
	groupCluster = "cluster"
	groupLocks   = "locks"
	groupAuth    = "auth"
	groupTool    = "tool"
)

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "etcdctl",
		Short: "Reads and changes what an etcd cluster holds, and looks after the cluster.",
		Example: examples(
			"etcdctl put greeting hello",
			"etcdctl get greeting",
			"etcdctl --endpoints=10.0.0.1:2379,10.0.0.2:2379 endpoint health -w table"),
		SilenceUsage: true,
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)

	a.global.register(root)
	root.AddGroup(
		&cobra.Group{ID: groupKeys, Title: "Keys, watches and leases"},
		&cobra.Group{ID: groupCluster, Title: "Members and maintenance"},
		&cobra.Group{ID: groupLocks, Title: "Locks and elections"},
		&cobra.Group{ID: groupAuth, Title: "Users and roles"},
		&cobra.Group{ID: groupTool, Title: "About the tool"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	keys, upkeep, locks, tool := keyCommands{a}, maintenanceCommands{a}, lockCommands{a}, toolCommands{a}
	add(groupKeys, keys.get(), keys.put(), keys.del(), keys.txn(),
		keys.compaction(), watchCommands{a}.watch(), leaseCommands{a}.lease())
	add(groupCluster, memberCommands{a}.member(), endpointCommands{a}.endpoint(), upkeep.alarm(),
		upkeep.defrag(), upkeep.moveLeader(), upkeep.snapshot(), upkeep.downgrade(),
		mirrorCommands{a}.makeMirror(), checkCommands{a}.check())
	add(groupLocks, locks.lock(), locks.elect())
	add(groupAuth, authCommands{a}.auth(), userCommands{a}.user(), roleCommands{a}.role())
	add(groupTool, tool.version(), tool.completion(), tool.options(root))
	root.SetHelpCommandGroupID(groupTool)

	// Two dozen global flags under every command would bury the command's own flags:
	// `etcdctl options` prints them.
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { f.Hidden = true })
	root.InitDefaultHelpFlag()
	root.Flags().Lookup("help").Hidden = true
	root.Flags().Bool("version", false, "print the version, and which build this is")
	root.Flags().Lookup("version").Hidden = true
	root.Version = build.ToolVersion("etcdctl")
	root.SetVersionTemplate("{{.Version}}")

	suggest.Flags(root)
	explainOldFlags(root)
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		suggest.Command(a.Stderr, cmd)
		help(cmd, args)
		if !cmd.HasAvailableSubCommands() {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		fmt.Fprintln(cmd.OutOrStdout(), `Use "etcdctl options" for the global flags, which every command takes.`)
	})
	return root
}

// Command returns the whole command tree, for tools that read its help. It is not meant to
// be run.
func Command() *cobra.Command { return new(app).rootCommand() }

// Knows reports whether word is a command.
func Knows(word string) bool {
	return slices.ContainsFunc(new(app).rootCommand().Commands(), func(c *cobra.Command) bool { return c.Name() == word || c.HasAlias(word) })
}

func (a toolCommands) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Prints the version of etcdctl and of the API it speaks",
		Example: examples("etcdctl version"),
		Run: a.runs(func(*cobra.Command, []string) error {
			fmt.Fprintln(a.Stdout, "etcdctl version:", build.EtcdVersion)
			fmt.Fprintln(a.Stdout, "API version:", build.APIVersion)
			return nil
		}),
	}
}

func (a toolCommands) options(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "options",
		Short:   "Prints the global flags, which every command takes",
		Example: examples("etcdctl options"),
		Run: a.runs(func(*cobra.Command, []string) error {
			shown := pflag.NewFlagSet("global", pflag.ContinueOnError)
			root.PersistentFlags().VisitAll(func(f *pflag.Flag) {
				c := *f
				c.Hidden = false
				shown.AddFlag(&c)
			})
			fmt.Fprint(a.Stdout, "Every command takes these flags; ETCDCTL_ENDPOINTS stands for --endpoints, and so on:\n\n")
			fmt.Fprint(a.Stdout, shown.FlagUsages())
			return nil
		}),
	}
}

func (a toolCommands) completion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion [bash|zsh|fish|powershell]",
		Short: "Prints a script that completes etcdctl's commands and flags in a shell",
		Long: strings.TrimSpace(`
Prints a script that completes etcdctl's commands and flags in a shell.

bash        etcdctl completion bash > /etc/bash_completion.d/etcdctl
zsh         etcdctl completion zsh > "${fpath[1]}/_etcdctl"
fish        etcdctl completion fish > ~/.config/fish/completions/etcdctl.fish
powershell  etcdctl completion powershell | Out-String | Invoke-Expression

A new shell reads the script. zsh needs "autoload -U compinit; compinit" in ~/.zshrc.`),
		Example:               examples("source <(etcdctl completion bash)"),
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

// examples formats command lines as cobra's help expects them.
func examples(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }

// oneOf completes a flag that takes one of a few words.
func oneOf(cmd *cobra.Command, flag string, words ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag is registered on the line above every call
	}
}
