package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a authCommands) auth() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "auth <subcommand>",
		Short: "Turns authentication on and off",
		Example: examples(
			"etcdctl user add root && etcdctl auth enable",
			"etcdctl --user=root auth disable"),
	}
	cmd.AddCommand(a.enable(), a.disable(), a.status())
	return cmd
}

func (a authCommands) enable() *cobra.Command {
	return &cobra.Command{
		Use:     "enable",
		Short:   "Turns authentication on; user root must exist, and gets the role root if it lacks it",
		Example: examples("etcdctl user add root && etcdctl auth enable"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 0 {
				return badArgs("auth enable command does not accept any arguments")
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				if err := enableAuth(ctx, c); err != nil {
					return s.rpcError(exitError, err)
				}
				fmt.Fprintln(a.Stdout, "Authentication Enabled")
				return nil
			})
		}),
	}
}

// enableAuth retries until root has its role, which it grants if necessary.
func enableAuth(ctx context.Context, c *clientv3.Client) error {
	for {
		_, err := c.AuthEnable(ctx)
		if !errors.Is(err, rpctypes.ErrRootRoleNotExist) {
			return err
		}
		if _, err := c.RoleAdd(ctx, "root"); err != nil {
			return err
		}
		if _, err := c.UserGrantRole(ctx, "root", "root"); err != nil {
			return err
		}
	}
}

func (a authCommands) disable() *cobra.Command {
	return &cobra.Command{
		Use:     "disable",
		Short:   "Turns authentication off; users and roles stay",
		Example: examples("etcdctl --user=root auth disable"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 0 {
				return badArgs("auth disable command does not accept any arguments")
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				if _, err := c.AuthDisable(ctx); err != nil {
					return s.rpcError(exitError, err)
				}
				fmt.Fprintln(a.Stdout, "Authentication Disabled")
				return nil
			})
		}),
	}
}

func (a authCommands) status() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Prints whether authentication is on, and how often users and roles have changed",
		Example: examples("etcdctl auth status"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 0 {
				return badArgs("auth status command does not accept any arguments")
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.AuthStatus(ctx)
				if err != nil {
					return s.rpcError(exitError, err)
				}
				return s.out.authStatus(r)
			})
		}),
	}
}
