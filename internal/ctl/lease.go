package ctl

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a leaseCommands) lease() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease <subcommand>",
		Short: "Grants, renews and revokes leases; a lease's keys are deleted with it",
		Example: examples(
			"etcdctl lease grant 60",
			"etcdctl put --lease=694d9a8a6c5a5b2c session alive"),
	}
	cmd.AddCommand(a.grant(), a.revoke(), a.timeToLive(),
		a.list(), a.keepAlive())
	return cmd
}

// parseLeaseID parses a lease ID, which is always hexadecimal.
func parseLeaseID(arg string) (clientv3.LeaseID, error) {
	id, err := strconv.ParseInt(arg, 16, 64)
	if err != nil {
		return 0, badArgs("bad lease ID arg (%w), expecting ID in Hex", err)
	}
	return clientv3.LeaseID(id), nil
}

func (a leaseCommands) grant() *cobra.Command {
	return &cobra.Command{
		Use:     "grant <ttl>",
		Short:   "Grants a lease that lives for ttl seconds unless it is renewed",
		Example: examples("etcdctl lease grant 60"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("lease grant command needs TTL argument")
			}
			ttl, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return badArgs("bad TTL (%w)", err)
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.Grant(ctx, ttl)
				if err != nil {
					return s.rpcError(exitError, fmt.Errorf("failed to grant lease (%w)", err))
				}
				return s.out.leaseGrant(r)
			})
		}),
	}
}

func (a leaseCommands) revoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke <leaseID>",
		Short:   "Revokes a lease, and deletes its keys",
		Example: examples("etcdctl lease revoke 694d9a8a6c5a5b2c"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("lease revoke command needs 1 argument")
			}
			id, err := parseLeaseID(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.Revoke(ctx, id)
				if err != nil {
					return s.rpcError(exitError, fmt.Errorf("failed to revoke lease (%w)", err))
				}
				return s.out.leaseRevoke(id, r)
			})
		}),
	}
}

func (a leaseCommands) timeToLive() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "timetolive <leaseID> [options]",
		Short:   "Prints how long a lease has left",
		Example: examples("etcdctl lease timetolive --keys 694d9a8a6c5a5b2c"),
	}
	keys := cmd.Flags().Bool("keys", false, "print the keys that are attached, too")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return badArgs("lease timetolive command needs lease ID as argument")
		}
		id, err := parseLeaseID(args[0])
		if err != nil {
			return err
		}
		var opts []clientv3.LeaseOption
		if *keys {
			opts = append(opts, clientv3.WithAttachedKeys())
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			r, err := c.TimeToLive(ctx, id, opts...)
			if err != nil {
				return s.rpcError(exitBadConnection, err)
			}
			return s.out.leaseTimeToLive(r, *keys)
		})
	})
	return cmd
}

func (a leaseCommands) list() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "Lists the leases that are alive",
		Example: examples("etcdctl lease list"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.Leases(ctx)
				if err != nil {
					return s.rpcError(exitBadConnection, err)
				}
				return s.out.leaseList(r)
			})
		}),
	}
}

func (a leaseCommands) keepAlive() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keep-alive [options] <leaseID>",
		Short: "Renews a lease for as long as the command runs",
		Example: examples(
			"etcdctl lease keep-alive 694d9a8a6c5a5b2c",
			"etcdctl lease keep-alive --once 694d9a8a6c5a5b2c"),
	}
	once := cmd.Flags().Bool("once", false, "renew once and return")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return badArgs("lease keep-alive command needs lease ID as argument")
		}
		id, err := parseLeaseID(args[0])
		if err != nil {
			return err
		}
		if *once {
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.KeepAliveOnce(ctx, id)
				if err != nil {
					return s.rpcError(exitBadConnection, err)
				}
				return s.out.leaseKeepAlive(r)
			})
		}
		return a.renew(cmd, id)
	})
	return cmd
}

// renew renews a lease until it is gone.
func (a leaseCommands) renew(cmd *cobra.Command, id clientv3.LeaseID) error {
	s, err := a.session(cmd)
	if err != nil {
		return err
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.Close()
	renewals, err := c.KeepAlive(context.Background(), id)
	if err != nil {
		return s.rpcError(exitBadConnection, err)
	}
	for r := range renewals {
		if err := s.out.leaseKeepAlive(r); err != nil {
			return err
		}
	}
	if _, ok := s.out.(*simplePrinter); ok {
		fmt.Fprintf(a.Stdout, "lease %016x expired or revoked.\n", id)
	}
	return nil
}
