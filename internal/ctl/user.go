package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a userCommands) user() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "user <subcommand>",
		Short: "Adds, changes and lists users",
		Example: examples(
			"etcdctl user add alice",
			"etcdctl user grant-role alice readers"),
	}
	cmd.AddCommand(a.add(), a.remove(), a.get(), a.list(),
		a.passwd(), a.grantRole(), a.revokeRole())
	return cmd
}

// change makes one request that changes users or roles, and prints what was done.
func (a *app) change(cmd *cobra.Command, done string, f func(ctx context.Context, c *clientv3.Client) (any, error)) error {
	return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
		r, err := f(ctx, c)
		if err != nil {
			return s.rpcError(exitError, err)
		}
		return s.out.done(done, r)
	})
}

func (a userCommands) add() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add <user name or user:password> [options]",
		Short: "Adds a user; asks for the password unless it is given",
		Example: examples(
			"etcdctl user add alice",
			"etcdctl user add alice --interactive=false < password-file",
			"etcdctl user add client1 --no-password"),
	}
	interactive := cmd.Flags().Bool("interactive", true, "ask for the password twice; if false, take one word of standard input")
	given := cmd.Flags().String("new-user-password", "", "the password; other users of the machine can see it")
	noPassword := cmd.Flags().Bool("no-password", false, "add a user who can log in with a client certificate only")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return badArgs("user add command requires user name as its argument")
		}
		user, password := args[0], *given
		if *noPassword {
			password = ""
		} else if password == "" {
			var (
				attached bool
				err      error
			)
			if user, password, attached = strings.Cut(args[0], ":"); attached && user == "" {
				return badArgs("empty user name is not allowed")
			} else if !attached {
				if password, err = a.newPassword(user, *interactive); err != nil {
					return err
				}
			}
		}
		return a.change(cmd, fmt.Sprintf("User %s created", user), func(ctx context.Context, c *clientv3.Client) (any, error) {
			return c.UserAddWithOptions(ctx, user, password, &clientv3.UserAddOptions{NoPassword: *noPassword})
		})
	})
	return cmd
}

// newPassword prompts for a password twice, or reads one word of standard input.
func (a userCommands) newPassword(user string, interactive bool) (string, error) {
	if !interactive {
		line, err := readLine(a.Stdin)
		if err != nil {
			return "", fail(exitBadArgs, fmt.Errorf("failed to read the password: %w", err))
		}
		word, _, _ := strings.Cut(strings.TrimLeft(line, " \t\r"), " ")
		return strings.TrimRight(word, "\t\r"), nil
	}
	password, err := a.askPassword(fmt.Sprintf("Password of %s: ", user))
	if err != nil {
		return "", fail(exitBadArgs, fmt.Errorf("failed to ask password: %w", err))
	}
	if password == "" {
		return "", fail(exitBadArgs, errors.New("empty password"))
	}
	again, err := a.askPassword(fmt.Sprintf("Type password of %s again for confirmation: ", user))
	if err != nil {
		return "", fail(exitBadArgs, fmt.Errorf("failed to ask password: %w", err))
	}
	if again != password {
		return "", fail(exitBadArgs, errors.New("given passwords are different"))
	}
	return password, nil
}

func (a userCommands) remove() *cobra.Command {
	return &cobra.Command{
		Use:     "delete <user name>",
		Short:   "Deletes a user and ends its logins",
		Example: examples("etcdctl user delete alice"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("user delete command requires user name as its argument")
			}
			return a.change(cmd, fmt.Sprintf("User %s deleted", args[0]), func(ctx context.Context, c *clientv3.Client) (any, error) {
				return c.UserDelete(ctx, args[0])
			})
		}),
	}
}

func (a userCommands) get() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get <user name> [options]",
		Short:   "Prints the roles of a user",
		Example: examples("etcdctl user get alice --detail"),
	}
	detail := cmd.Flags().Bool("detail", false, "print what the roles may do, too")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return badArgs("user get command requires user name as its argument")
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			r, err := c.UserGet(ctx, args[0])
			if err != nil {
				return s.rpcError(exitError, err)
			}
			if !*detail {
				return s.out.userGet(args[0], r)
			}
			fmt.Fprintf(a.Stdout, "User: %s\n", args[0])
			for _, role := range r.Roles {
				fmt.Fprintln(a.Stdout)
				r, err := c.RoleGet(ctx, role)
				if err != nil {
					return s.rpcError(exitError, err)
				}
				if err := s.out.roleGet(role, r); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return cmd
}

func (a userCommands) list() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "Lists all users",
		Example: examples("etcdctl user list"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 0 {
				return badArgs("user list command requires no arguments")
			}
			return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
				r, err := c.UserList(ctx)
				if err != nil {
					return s.rpcError(exitError, err)
				}
				return s.out.userList(r)
			})
		}),
	}
}

func (a userCommands) passwd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "passwd <user name> [options]",
		Short:   "Gives a user another password and ends its logins",
		Example: examples("etcdctl user passwd alice"),
	}
	interactive := cmd.Flags().Bool("interactive", true, "ask for the password twice; if false, take one word of standard input")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return badArgs("user passwd command requires user name as its argument")
		}
		password, err := a.newPassword(args[0], *interactive)
		if err != nil {
			return err
		}
		return a.change(cmd, "Password updated", func(ctx context.Context, c *clientv3.Client) (any, error) {
			return c.UserChangePassword(ctx, args[0], password)
		})
	})
	return cmd
}

func (a userCommands) grantRole() *cobra.Command {
	return &cobra.Command{
		Use:     "grant-role <user name> <role name>",
		Short:   "Gives a user a role",
		Example: examples("etcdctl user grant-role alice readers"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return badArgs("user grant command requires user name and role name as its argument")
			}
			return a.change(cmd, fmt.Sprintf("Role %s is granted to user %s", args[1], args[0]), func(ctx context.Context, c *clientv3.Client) (any, error) {
				return c.UserGrantRole(ctx, args[0], args[1])
			})
		}),
	}
}

func (a userCommands) revokeRole() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke-role <user name> <role name>",
		Short:   "Takes a role from a user",
		Example: examples("etcdctl user revoke-role alice readers"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return badArgs("user revoke-role requires user name and role name as its argument")
			}
			return a.change(cmd, fmt.Sprintf("Role %s is revoked from user %s", args[1], args[0]), func(ctx context.Context, c *clientv3.Client) (any, error) {
				return c.UserRevokeRole(ctx, args[0], args[1])
			})
		}),
	}
}
