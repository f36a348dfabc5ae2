package ctl

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a maintenanceCommands) downgrade() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "downgrade <TARGET_VERSION>",
		Short: "Prepares the cluster for members of the previous version",
		Long: strings.TrimSpace(`
Prepares the cluster for members of the previous version. "validate" reports whether
that is possible, "enable" starts it: the data is kept so that the older version can
read it, and members can then be replaced one by one. "cancel" ends it.`),
		Example: examples(
			"etcdctl downgrade validate 3.6",
			"etcdctl downgrade enable 3.6",
			"etcdctl endpoint status --cluster -w table"),
	}
	toVersion := func(name, short string, action clientv3.DowngradeAction) *cobra.Command {
		return &cobra.Command{
			Use:     name + " <TARGET_VERSION>",
			Short:   short,
			Example: examples("etcdctl downgrade " + name + " 3.6"),
			Run: a.runs(func(cmd *cobra.Command, args []string) error {
				switch {
				case len(args) == 0:
					return badArgs("TARGET_VERSION not provided")
				case len(args) > 1:
					return badArgs("too many arguments")
				case args[0] == "":
					return badArgs("target version not provided")
				}
				return a.sendDowngrade(cmd, name, action, args[0])
			}),
		}
	}
	cmd.AddCommand(
		toVersion("validate", "Reports whether the cluster can be downgraded to a version", clientv3.DowngradeValidate),
		toVersion("enable", "Starts the downgrade to a version", clientv3.DowngradeEnable),
		&cobra.Command{
			Use:     "cancel",
			Short:   "Cancels the downgrade",
			Example: examples("etcdctl downgrade cancel"),
			Run: a.runs(func(cmd *cobra.Command, args []string) error {
				return a.sendDowngrade(cmd, "cancel", clientv3.DowngradeCancel, "")
			}),
		},
	)
	return cmd
}

func (a maintenanceCommands) sendDowngrade(cmd *cobra.Command, name string, action clientv3.DowngradeAction, version string) error {
	return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
		r, err := c.Downgrade(ctx, action, version)
		if err != nil {
			return s.rpcError(exitError, err)
		}
		return s.out.downgrade(name, r)
	})
}
