package ctlv2

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"go.etcd.io/etcd/client/pkg/v3/pathutil"
	client "go.etcd.io/etcd/client/v2"
)

// ask makes requests about users and roles, and prints the result of f.
func (t authCommands) ask(f func(ctx context.Context, c client.Client) (string, error)) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	return t.askWith(c, f)
}

func (t authCommands) askWith(c client.Client, f func(ctx context.Context, c client.Client) (string, error)) error {
	t.trace("Cluster-Endpoints: %s", strings.Join(c.Endpoints(), ", "))
	ctx, cancel := t.limited()
	defer cancel()
	text, err := f(ctx, c)
	if err != nil {
		return plain("%v", err)
	}
	fmt.Fprint(t.Stdout, text)
	return nil
}

// named returns a command that takes the name of a user or a role.
func (t authCommands) named(what string, f func(ctx context.Context, c client.Client, name string) (string, error)) func(args []string) error {
	return func(args []string) error {
		if len(args) != 1 {
			return plain("Please provide a %s", what)
		}
		return t.ask(func(ctx context.Context, c client.Client) (string, error) { return f(ctx, c, args[0]) })
	}
}

// listed returns a command that prints names.
func (t authCommands) listed(f func(ctx context.Context, c client.Client) ([]string, error)) func(args []string) error {
	return func(args []string) error {
		if len(args) != 0 {
			return plain("No arguments accepted")
		}
		return t.ask(func(ctx context.Context, c client.Client) (string, error) {
			names, err := f(ctx, c)
			return lines("", names), err
		})
	}
}

func lines(indent string, of []string) string {
	var b strings.Builder
	for _, l := range of {
		b.WriteString(indent + l + "\n")
	}
	return b.String()
}

func (t authCommands) auth() *cobra.Command {
	turn := func(f func(client.AuthAPI, context.Context) error, done string) func(args []string) error {
		return func(args []string) error {
			if len(args) != 0 {
				return plain("No arguments accepted")
			}
			return t.ask(func(ctx context.Context, c client.Client) (string, error) {
				return done + "\n", f(client.NewAuthAPI(c), ctx)
			})
		}
	}
	return t.group("auth", "Turns authentication on and off",
		t.leaf("enable", "Turns authentication on", nil, turn(client.AuthAPI.Enable, "Authentication Enabled")),
		t.leaf("disable", "Turns authentication off", nil, turn(client.AuthAPI.Disable, "Authentication Disabled")),
	)
}

func (t authCommands) user() *cobra.Command {
	get := func(ctx context.Context, c client.Client, name string) (string, error) {
		u, err := client.NewAuthUserAPI(c).GetUser(ctx, name)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("User: %s\nRoles: %s\n", u.User, strings.Join(u.Roles, " ")), nil
	}
	remove := func(ctx context.Context, c client.Client, name string) (string, error) {
		return fmt.Sprintf("User %s removed\n", name), client.NewAuthUserAPI(c).RemoveUser(ctx, name)
	}
	return t.group("user", "Lists and changes the users of the v2 API",
		t.leaf("add <user>[:password]", "Adds a user", nil, t.userAdd),
		t.leaf("get <user>", "Shows a user's roles", nil, t.named("username", get)),
		t.leaf("list", "Lists the users", nil, t.listed(func(ctx context.Context, c client.Client) ([]string, error) {
			return client.NewAuthUserAPI(c).ListUsers(ctx)
		})),
		t.leaf("remove <user>", "Removes a user", nil, t.named("username", remove)),
		t.userRoles("grant <user>", "Grants roles to a user", client.AuthUserAPI.GrantUser),
		t.userRoles("revoke <user>", "Revokes roles from a user", client.AuthUserAPI.RevokeUser),
		t.leaf("passwd <user>", "Sets a user's password", nil, t.userPasswd),
	)
}

// forUser checks the number of arguments and connects before it prompts for a password.
func (t authCommands) forUser(args []string) (client.Client, error) {
	if len(args) != 1 {
		return nil, plain("Please provide a username")
	}
	return t.client()
}

func (t authCommands) userAdd(args []string) error {
	c, err := t.forUser(args)
	if err != nil {
		return err
	}
	name, password, err := t.splitUser(args[0], "New password: ")
	if err != nil {
		return plain("Error reading password: %v", err)
	}
	return t.askWith(c, func(ctx context.Context, c client.Client) (string, error) {
		return fmt.Sprintf("User %s created\n", name), client.NewAuthUserAPI(c).AddUser(ctx, name, password)
	})
}

func (t authCommands) userPasswd(args []string) error {
	c, err := t.forUser(args)
	if err != nil {
		return err
	}
	password, err := t.AskPassword("New password: ")
	if err != nil {
		return plain("Error reading password: %v", err)
	}
	return t.askWith(c, func(ctx context.Context, c client.Client) (string, error) {
		_, err := client.NewAuthUserAPI(c).ChangePassword(ctx, args[0], password)
		return "Password updated\n", err
	})
}

func (t authCommands) userRoles(use, short string, f func(api client.AuthUserAPI, ctx context.Context, name string, roles []string) (*client.User, error)) *cobra.Command {
	var roles words
	change := t.named("username", func(ctx context.Context, c client.Client, name string) (string, error) {
		_, err := f(client.NewAuthUserAPI(c), ctx, name, roles)
		return fmt.Sprintf("User %s updated\n", name), err
	})
	return t.leaf(use, short, func(fs *flagSet) {
		fs.Var(&roles, "roles", "a role; may be repeated")
	}, func(args []string) error {
		if len(roles) == 0 {
			return plain("No roles specified; please use `--roles`")
		}
		return change(args)
	})
}

func (t authCommands) role() *cobra.Command {
	get := func(ctx context.Context, c client.Client, name string) (string, error) {
		r, err := client.NewAuthRoleAPI(c).GetRole(ctx, name)
		if err != nil {
			return "", err
		}
		kv := r.Permissions.KV
		return fmt.Sprintf("Role: %s\nKV Read:\n%sKV Write:\n%s", r.Role, lines("\t", kv.Read), lines("\t", kv.Write)), nil
	}
	add := func(ctx context.Context, c client.Client, name string) (string, error) {
		api := client.NewAuthRoleAPI(c)
		if r, _ := api.GetRole(ctx, name); r != nil {
			//lint:ignore ST1005 etcdctl's text
			return "", fmt.Errorf("Role %s already exists", name)
		}
		return fmt.Sprintf("Role %s created\n", name), api.AddRole(ctx, name)
	}
	remove := func(ctx context.Context, c client.Client, name string) (string, error) {
		return fmt.Sprintf("Role %s removed\n", name), client.NewAuthRoleAPI(c).RemoveRole(ctx, name)
	}
	return t.group("role", "Lists and changes the roles of the v2 API",
		t.leaf("add <role>", "Adds a role", nil, t.named("role name", add)),
		t.leaf("get <role>", "Shows a role's permissions", nil, t.named("role name", get)),
		t.leaf("list", "Lists the roles", nil, t.listed(func(ctx context.Context, c client.Client) ([]string, error) {
			return client.NewAuthRoleAPI(c).ListRoles(ctx)
		})),
		t.leaf("remove <role>", "Removes a role", nil, t.named("role name", remove)),
		t.rolePath("grant <role>", "Grants a role permissions below a path", "granted", client.AuthRoleAPI.GrantRoleKV),
		t.rolePath("revoke <role>", "Revokes a role's permissions below a path", "revoked", client.AuthRoleAPI.RevokeRoleKV),
	)
}

func (t authCommands) rolePath(use, short, done string, f func(api client.AuthRoleAPI, ctx context.Context, role string, prefixes []string, kind client.PermissionType) (*client.Role, error)) *cobra.Command {
	var path string
	var read, write, readWrite bool
	var kind client.PermissionType
	change := t.named("role name", func(ctx context.Context, c client.Client, name string) (string, error) {
		api := client.NewAuthRoleAPI(c)
		before, err := api.GetRole(ctx, name)
		if err != nil {
			return "", err
		}
		after, err := f(api, ctx, name, []string{path}, kind)
		if err != nil {
			return "", err
		}
		text := ""
		if reflect.DeepEqual(before, after) {
			text = "Role unchanged; already " + done // in one line with what follows, as in etcdctl
		}
		return text + fmt.Sprintf("Role %s updated\n", name), nil
	})
	return t.leaf(use, short, func(fs *flagSet) {
		fs.StringVar(&path, "path", "", "a key, or with * at its end all that begin with it")
		fs.BoolVar(&read, "read", false, "reading")
		fs.BoolVar(&write, "write", false, "writing")
		fs.BoolVar(&readWrite, "readwrite", false, "reading and writing")
		fs.alias("rw", "readwrite")
	}, func(args []string) error {
		if path == "" {
			return plain("No path specified; please use `--path`")
		}
		if clean := pathutil.CanonicalURLPath(path); clean != path {
			return plain("Not canonical path; please use `--path=%s`", clean)
		}
		switch {
		case read && !write && !readWrite:
			kind = client.ReadPermission
		case write && !read && !readWrite:
			kind = client.WritePermission
		case readWrite && !read && !write:
			kind = client.ReadWritePermission
		default:
			return plain("Please specify exactly one of --read, --write or --readwrite")
		}
		return change(args)
	})
}
