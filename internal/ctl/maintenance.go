package ctl

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"quorate/internal/clock"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
)

func (a maintenanceCommands) alarm() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "alarm <subcommand>",
		Short:   "Lists and clears alarms, which stop a cluster from accepting writes",
		Example: examples("etcdctl alarm list"),
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "list",
			Short:   "Lists the alarms that are raised",
			Example: examples("etcdctl alarm list"),
			Run: a.runs(func(cmd *cobra.Command, args []string) error {
				if len(args) != 0 {
					return badArgs("alarm list command accepts no arguments")
				}
				return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
					r, err := c.AlarmList(ctx)
					if err != nil {
						return s.rpcError(exitError, err)
					}
					return s.out.alarms(r)
				})
			}),
		},
		&cobra.Command{
			Use:     "disarm",
			Short:   "Clears all alarms, once their cause is gone, and prints them",
			Example: examples("etcdctl alarm disarm"),
			Run: a.runs(func(cmd *cobra.Command, args []string) error {
				if len(args) != 0 {
					return badArgs("alarm disarm command accepts no arguments")
				}
				return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
					r, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{}) // no member and no type: all of them
					if err != nil {
						return s.rpcError(exitError, err)
					}
					return s.out.alarms(r)
				})
			}),
		},
	)
	return cmd
}

func (a maintenanceCommands) defrag() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "defrag",
		Short:   "Releases disk space that the endpoints no longer need",
		Example: examples("etcdctl defrag --cluster"),
	}
	cluster := clusterFlag(cmd)
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		s, err := a.session(cmd)
		if err != nil {
			return err
		}
		eps, err := s.targets(*cluster)
		if err != nil {
			return err
		}
		var failed error
		for _, ep := range eps {
			err := s.ask(ep, func(ctx context.Context, c *clientv3.Client) error {
				start := clock.Now()
				_, err := c.Defragment(ctx, ep)
				took := clock.Since(start)
				if err != nil {
					failed = fail(exitError, nil)
					fmt.Fprintf(a.Stderr, "Failed to defragment etcd member[%s]. took %s. (%v)\n", ep, took, err)
					s.explain(err, ep)
					return nil
				}
				fmt.Fprintf(a.Stdout, "Finished defragmenting etcd member[%s]. took %s\n", ep, took)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return failed
	})
	return cmd
}

func (a maintenanceCommands) moveLeader() *cobra.Command {
	return &cobra.Command{
		Use:   "move-leader <transferee-member-id>",
		Short: "Hands the leadership to another member",
		Long: strings.TrimSpace(`
Hands the leadership to another member. The endpoints must include the leader's.`),
		Example: examples("etcdctl --endpoints=10.0.0.1:2379,10.0.0.2:2379 move-leader 8e9e05c52164694d"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("move-leader command needs 1 argument")
			}
			to, err := strconv.ParseUint(args[0], 16, 64)
			if err != nil {
				return fail(exitBadArgs, err)
			}
			s, err := a.session(cmd)
			if err != nil {
				return err
			}
			return s.moveLeader(to)
		}),
	}
}

// moveLeader asks the endpoints one after the other, and has the leader, once found,
// transfer its leadership.
func (s *session) moveLeader(to uint64) error {
	found := false
	for _, ep := range s.spec.Endpoints {
		err := s.ask(ep, func(ctx context.Context, c *clientv3.Client) error {
			st, err := c.Status(ctx, ep)
			if err != nil {
				return s.rpcError(exitError, err, ep)
			}
			if st.Header.GetMemberId() != st.Leader {
				return nil
			}
			found = true
			r, err := c.MoveLeader(ctx, to)
			if err != nil {
				return s.rpcError(exitError, err, ep)
			}
			return s.out.moveLeader(st.Leader, to, r)
		})
		if err != nil || found {
			return err
		}
	}
	return badArgs("no leader endpoint given at %v", s.spec.Endpoints)
}

func (a maintenanceCommands) snapshot() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot <subcommand>",
		Short:   "Saves a copy of a member's data, to restore a cluster from",
		Example: examples("etcdctl --endpoints=10.0.0.1:2379 snapshot save /backup/etcd.db"),
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "save <filename>",
		Short: "Saves a copy of one member's data in a file",
		Long: strings.TrimSpace(`
Saves a copy of one member's data, as it is at one moment, in a file. It is
written beside the file as FILE.part and takes its place when it is complete.
There is no time limit unless --command-timeout is given.`),
		Example: examples(
			"etcdctl --endpoints=10.0.0.1:2379 snapshot save /backup/etcd.db",
			`etcdctl snapshot save "/backup/etcd-$(date +%Y%m%d-%H%M%S).db"`),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("snapshot save expects one argument <filename>")
			}
			s, err := a.session(cmd)
			if err != nil {
				return err
			}
			return s.saveSnapshot(args[0])
		}),
	})
	return cmd
}

func (s *session) saveSnapshot(file string) error {
	cfg, err := s.config()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	if s.timeoutGiven {
		ctx, cancel = s.timeout()
	}
	defer cancel()
	version, err := snapshot.SaveWithVersion(ctx, s.app.lg, *cfg, file)
	if err != nil {
		return s.rpcError(exitInterrupted, err)
	}
	fmt.Fprintf(s.app.Stdout, "Snapshot saved at %s\n", file)
	if version != "" { // servers before 3.6 do not report it
		fmt.Fprintf(s.app.Stdout, "Server version %s\n", version)
	}
	return nil
}
