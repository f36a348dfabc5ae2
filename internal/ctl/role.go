package ctl

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a roleCommands) role() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "role <subcommand>",
		Short: "Adds, changes and lists roles, which say who may touch which keys",
		Example: examples(
			"etcdctl role add readers",
			"etcdctl role grant-permission readers read --prefix /app/"),
	}
	cmd.AddCommand(a.add(), a.remove(), a.get(), a.list(),
		a.grant(), a.revoke())
	return cmd
}

func (a roleCommands) add() *cobra.Command {
	return &cobra.Command{
		Use:     "add <role name>",
		Short:   "Adds a role that may do nothing yet",
		Example: examples("etcdctl role add readers"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("role add command requires role name as its argument")
			}
			return a.change(cmd, fmt.Sprintf("Role %s created", args[0]), func(ctx context.Context, c *clientv3.Client) (any, error) {
				return c.RoleAdd(ctx, args[0])
			})
		}),
	}
}

func (a roleCommands) remove() *cobra.Command {
	return &cobra.Command{
		Use:     "delete <role name>",
		Short:   "Deletes a role and takes it from all users",
		Example: examples("etcdctl role delete readers"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("role delete command requires role name as its argument")
			}
			return a.change(cmd, fmt.Sprintf("Role %s deleted", args[0]), func(ctx context.Context, c *clientv3.Client) (any, error) {
				return c.RoleDelete(ctx, args[0])
			})
		}),
	}
}

func (a roleCommands) get() *cobra.Command {
	return &cobra.Command{
		Use:     "get <role name>",
		Short:   "Prints what a role may do",
		Example: examples("etcdctl role get readers"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("role get command requires role name as its argument")
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.RoleGet(ctx, args[0])
				if err != nil {
					return s.rpcError(exitError, err)
				}
				return s.out.roleGet(args[0], r)
			})
		}),
	}
}

func (a roleCommands) list() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "Lists all roles",
		Example: examples("etcdctl role list"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 0 {
				return badArgs("role list command requires no arguments")
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.RoleList(ctx)
				if err != nil {
					return s.rpcError(exitError, err)
				}
				return s.out.roleList(r)
			})
		}),
	}
}

// rangeFlags say which keys after the given one are included.
type rangeFlags struct{ prefix, fromKey *bool }

func newRangeFlags(cmd *cobra.Command) rangeFlags {
	return rangeFlags{
		prefix:  cmd.Flags().Bool("prefix", false, "all keys that begin with the key"),
		fromKey: cmd.Flags().Bool("from-key", false, "the key and all that come after it in byte order"),
	}
}

// keys returns the range of a permission: one key if end is empty. An empty key stands for
// the first possible key.
func (f rangeFlags) keys(args []string) (key, end string, err error) {
	key = args[0]
	switch {
	case (key == "" || len(args) == 1) && *f.prefix && *f.fromKey:
		return "", "", badArgs("--from-key and --prefix flags are mutually exclusive")
	case key == "" && (*f.prefix || *f.fromKey):
		return "\x00", "\x00", nil
	case key == "":
		return "\x00", "", nil
	case len(args) > 1 && *f.prefix:
		return "", "", badArgs("unexpected endkey argument with --prefix flag")
	case len(args) > 1 && *f.fromKey:
		return "", "", badArgs("unexpected endkey argument with --from-key flag")
	case len(args) > 1:
		return key, args[1], nil
	case *f.prefix:
		return key, clientv3.GetPrefixRangeEnd(key), nil
	case *f.fromKey:
		return key, "\x00", nil
	}
	return key, "", nil
}

func (a roleCommands) grant() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "grant-permission [options] <role name> <permission type> <key> [endkey]",
		Short: "Lets a role read, write or readwrite a key or a range of keys",
		Example: examples(
			"etcdctl role grant-permission readers read --prefix /app/",
			"etcdctl role grant-permission admins readwrite a z"),
	}
	flags := newRangeFlags(cmd)
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) < 3 {
			return badArgs("role grant command requires role name, permission type, and key [endkey] as its argument")
		}
		kind, err := clientv3.StrToPermissionType(args[1])
		if err != nil {
			return fail(exitBadArgs, err)
		}
		key, end, err := flags.keys(args[2:])
		if err != nil {
			return err
		}
		return a.change(cmd, fmt.Sprintf("Role %s updated", args[0]), func(ctx context.Context, c *clientv3.Client) (any, error) {
			return c.RoleGrantPermission(ctx, args[0], key, end, kind)
		})
	})
	return cmd
}

func (a roleCommands) revoke() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "revoke-permission <role name> <key> [endkey]",
		Short:   "Takes the permission on exactly this key or range from a role",
		Example: examples("etcdctl role revoke-permission readers --prefix /app/"),
	}
	flags := newRangeFlags(cmd)
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			return badArgs("role revoke-permission command requires role name and key [endkey] as its argument")
		}
		key, end, err := flags.keys(args[1:])
		if err != nil {
			return err
		}
		return a.change(cmd, revokedText(args[0], args[1], end), func(ctx context.Context, c *clientv3.Client) (any, error) {
			return c.RoleRevokePermission(ctx, args[0], key, end)
		})
	})
	return cmd
}

func revokedText(role, key, end string) string {
	switch end {
	case "":
		return fmt.Sprintf("Permission of key %s is revoked from role %s", key, role)
	case "\x00":
		return fmt.Sprintf("Permission of range [%s, <open ended> is revoked from role %s", key, role)
	}
	return fmt.Sprintf("Permission of range [%s, %s) is revoked from role %s", key, end, role)
}
