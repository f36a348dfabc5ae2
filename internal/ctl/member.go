package ctl

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a memberCommands) member() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "member <subcommand>",
		Short:   "Lists and changes the members of the cluster",
		Example: examples("etcdctl member list -w table"),
	}
	cmd.AddCommand(a.add(), a.remove(), a.update(),
		a.list(), a.promote())
	return cmd
}

// memberID parses the only argument of a command on a member: its ID in hexadecimal.
func memberID(args []string) (uint64, error) {
	if len(args) != 1 {
		return 0, badArgs("member ID is not provided")
	}
	id, err := strconv.ParseUint(args[0], 16, 64)
	if err != nil {
		return 0, badArgs("bad member ID arg (%w), expecting ID in Hex", err)
	}
	return id, nil
}

func (a memberCommands) add() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add <memberName> [options]",
		Short: "Adds a member, and prints the settings to start it with",
		Long: strings.TrimSpace(`
Adds a member, and prints the settings to start it with. The cluster counts it
for its majority at once, so start it before adding another; a learner counts
only after "etcdctl member promote".`),
		Example: examples("etcdctl member add m4 --peer-urls=https://10.0.0.4:2380 --learner"),
	}
	peerURLs := cmd.Flags().String("peer-urls", "", "where the other members reach the new one, comma separated")
	learner := cmd.Flags().Bool("learner", false, "add it as a learner, which receives everything and does not vote")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return badArgs("member name not provided")
		}
		if len(args) > 1 {
			hint := ""
			for _, arg := range args {
				if strings.HasPrefix(strings.ToLower(arg), "http") {
					hint += ", did you mean --peer-urls=" + arg
				}
			}
			return badArgs("too many arguments%s", hint)
		}
		if *peerURLs == "" {
			return badArgs("member peer urls not provided")
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			add := c.MemberAdd
			if *learner {
				add = c.MemberAddAsLearner
			}
			r, err := add(ctx, strings.Split(*peerURLs, ","))
			if err != nil {
				return s.refusedChange(c, err)
			}
			if err := s.out.memberAdd(r); err != nil {
				return err
			}
			if _, ok := s.out.(*simplePrinter); ok {
				a.printNewMember(r, args[0], *peerURLs)
			}
			return nil
		})
	})
	return cmd
}

// printNewMember prints the settings of the new member in a form that a shell can use.
func (a memberCommands) printNewMember(r *clientv3.MemberAddResponse, name, peerURLs string) {
	var cluster []string
	for _, m := range r.Members {
		n := m.GetName()
		if m.GetID() == r.Member.GetID() {
			n = name
		}
		for _, u := range m.GetPeerURLs() {
			cluster = append(cluster, n+"="+u)
		}
	}
	fmt.Fprintf(a.Stdout, "\nETCD_NAME=%q\n", name)
	fmt.Fprintf(a.Stdout, "ETCD_INITIAL_CLUSTER=%q\n", strings.Join(cluster, ","))
	fmt.Fprintf(a.Stdout, "ETCD_INITIAL_ADVERTISE_PEER_URLS=%q\n", peerURLs)
	fmt.Fprintf(a.Stdout, "ETCD_INITIAL_CLUSTER_STATE=%q\n", "existing")
}

func (a memberCommands) remove() *cobra.Command {
	return &cobra.Command{
		Use:     "remove <memberID>",
		Short:   "Removes a member, for good: its ID never comes back",
		Example: examples("etcdctl member remove 8e9e05c52164694d"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.MemberRemove(ctx, id)
				if err != nil {
					return s.refusedChange(c, err)
				}
				return s.out.memberRemove(id, r)
			})
		}),
	}
}

func (a memberCommands) update() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "update <memberID> [options]",
		Short:   "Changes where the other members reach a member",
		Example: examples("etcdctl member update 8e9e05c52164694d --peer-urls=https://10.0.0.9:2380"),
	}
	peerURLs := cmd.Flags().String("peer-urls", "", "where the other members reach it from now on, comma separated")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		id, err := memberID(args)
		if err != nil {
			return err
		}
		if *peerURLs == "" {
			return badArgs("member peer urls not provided")
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			r, err := c.MemberUpdate(ctx, id, strings.Split(*peerURLs, ","))
			if err != nil {
				return s.rpcError(exitError, err)
			}
			return s.out.memberUpdate(id, r)
		})
	})
	return cmd
}

func (a memberCommands) list() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Lists the members",
		Long: strings.TrimSpace(`
Lists the members. In the simple format a line is ID, status, name, peer
addresses, client addresses, and whether it is a learner.`),
		Example: examples("etcdctl member list -w table"),
	}
	consistency := cmd.Flags().String("consistency", "l", "l (linearizable) asks the cluster, s (serializable) reads the member's own data")
	oneOf(cmd, "consistency", "l", "s")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		serializable, err := isSerializable(*consistency)
		if err != nil {
			return err
		}
		var opts []clientv3.OpOption
		if serializable {
			opts = append(opts, clientv3.WithSerializable())
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			r, err := c.MemberList(ctx, opts...)
			if err != nil {
				return s.rpcError(exitError, err)
			}
			return s.out.memberList(r)
		})
	})
	return cmd
}

func (a memberCommands) promote() *cobra.Command {
	return &cobra.Command{
		Use:     "promote <memberID>",
		Short:   "Makes a learner that has caught up a voting member",
		Example: examples("etcdctl member promote 8e9e05c52164694d"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.MemberPromote(ctx, id)
				if err != nil {
					return s.refusedChange(c, err)
				}
				return s.out.memberPromote(id, r)
			})
		}),
	}
}
