package ctlv2

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	client "go.etcd.io/etcd/client/v2"
)

// onKey returns the body of a command whose first argument is a key. It resolves the
// endpoints before it checks the arguments, as etcdctl does.
func (t keyCommands) onKey(args []string, f func(api client.KeysAPI, key string) error) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return badArgs("key required")
	}
	return f(client.NewKeysAPI(c), args[0])
}

// request makes one request, and passes its answer on.
func (t keyCommands) request(ask func(ctx context.Context) (*client.Response, error), show func(*client.Response) error) error {
	ctx, cancel := t.limited()
	defer cancel()
	resp, err := ask(ctx)
	if err != nil {
		return refused(exitServerError, err)
	}
	return show(resp)
}

// value returns the second argument, or standard input.
func (t keyCommands) value(args []string) (string, error) {
	if len(args) > 1 {
		return args[1], nil
	}
	data, err := io.ReadAll(t.Stdin)
	if err != nil || len(data) == 0 {
		return "", badArgs("value required")
	}
	return string(data), nil
}

func (t keyCommands) get() *cobra.Command {
	var opts client.GetOptions
	return t.leaf("get <key>", "Prints the value of a key", func(fs *flagSet) {
		fs.BoolVar(&opts.Sort, "sort", false, "in order of the keys")
		fs.BoolVar(&opts.Quorum, "quorum", false, "ask a quorum of the members")
		fs.alias("q", "quorum")
	}, func(args []string) error {
		return t.onKey(args, func(api client.KeysAPI, key string) error {
			return t.request(func(ctx context.Context) (*client.Response, error) { return api.Get(ctx, key, &opts) },
				func(resp *client.Response) error {
					if resp.Node.Dir {
						return plain("%s: is a directory", resp.Node.Key)
					}
					return t.print(resp)
				})
		})
	})
}

func (t keyCommands) ls() *cobra.Command {
	var opts client.GetOptions
	var slash bool
	return t.leaf("ls [key]", "Lists a directory", func(fs *flagSet) {
		fs.BoolVar(&opts.Sort, "sort", false, "in order of the keys")
		fs.BoolVar(&opts.Recursive, "recursive", false, "with everything below the directory")
		fs.alias("r", "recursive")
		fs.BoolVar(&slash, "p", false, "append a slash to directories")
		fs.BoolVar(&opts.Quorum, "quorum", false, "ask a quorum of the members")
		fs.alias("q", "quorum")
	}, func(args []string) error {
		if len(args) == 0 {
			args = []string{"/"}
		}
		return t.onKey(args, func(api client.KeysAPI, key string) error {
			return t.request(func(ctx context.Context) (*client.Response, error) { return api.Get(ctx, key, &opts) },
				func(resp *client.Response) error {
					if t.output != "simple" {
						return t.print(resp)
					}
					if !resp.Node.Dir {
						fmt.Fprintln(t.Stdout, resp.Node.Key)
					}
					t.list(resp.Node.Nodes, slash)
					return nil
				})
		})
	})
}

func (t keyCommands) list(nodes client.Nodes, slash bool) {
	for _, n := range nodes {
		name := n.Key
		if n.Dir && slash {
			name += "/"
		}
		fmt.Fprintln(t.Stdout, name)
		t.list(n.Nodes, slash)
	}
}

// change returns a command that writes a key. flags sets opts from flags other than --ttl,
// which all of these commands have; value says whether the command takes a value, or
// creates a directory.
func (t keyCommands) change(use, short string, opts client.SetOptions, value bool, flags func(fs *flagSet, opts *client.SetOptions) (done func())) *cobra.Command {
	var ttl int
	done := func() {}
	opts.Dir = !value
	return t.leaf(use, short, func(fs *flagSet) {
		fs.IntVar(&ttl, "ttl", 0, "seconds until it expires (0: never)")
		if flags != nil {
			done = flags(fs, &opts)
		}
	}, func(args []string) error {
		return t.onKey(args, func(api client.KeysAPI, key string) error {
			text := ""
			if value {
				var err error
				if text, err = t.value(args); err != nil {
					return err
				}
			}
			done()
			opts.TTL = time.Duration(ttl) * time.Second
			return t.request(func(ctx context.Context) (*client.Response, error) { return api.Set(ctx, key, text, &opts) },
				func(resp *client.Response) error {
					if opts.Dir && t.output == "simple" {
						return nil
					}
					return t.print(resp)
				})
		})
	})
}

func (t keyCommands) set() *cobra.Command {
	return t.change("set <key> [value]", "Sets the value of a key, by default to standard input", client.SetOptions{}, true,
		func(fs *flagSet, opts *client.SetOptions) func() {
			index := fs.Int("swap-with-index", 0, "only if the key was last modified at this index")
			fs.StringVar(&opts.PrevValue, "swap-with-value", "", "only if the key has this value")
			return func() { opts.PrevIndex = uint64(*index) }
		})
}

func (t keyCommands) update() *cobra.Command {
	return t.change("update <key> [value]", "Sets the value of a key that exists", client.SetOptions{PrevExist: client.PrevExist}, true, nil)
}

func (t keyCommands) mkdir() *cobra.Command {
	return t.change("mkdir <key>", "Makes a directory", client.SetOptions{PrevExist: client.PrevNoExist}, false, nil)
}

func (t keyCommands) setdir() *cobra.Command {
	return t.change("setdir <key>", "Makes a directory, also in place of a key", client.SetOptions{}, false, nil)
}

func (t keyCommands) updatedir() *cobra.Command {
	return t.change("updatedir <key>", "Sets the TTL of a directory", client.SetOptions{PrevExist: client.PrevExist}, false, nil)
}

func (t keyCommands) mk() *cobra.Command {
	var inOrder bool
	var ttl int
	return t.leaf("mk <key> [value]", "Makes a key that does not exist", func(fs *flagSet) {
		fs.BoolVar(&inOrder, "in-order", false, "under a name after all existing ones, in the directory <key>")
		fs.IntVar(&ttl, "ttl", 0, "seconds until it expires (0: never)")
	}, func(args []string) error {
		return t.onKey(args, func(api client.KeysAPI, key string) error {
			value, err := t.value(args)
			if err != nil {
				return err
			}
			life := time.Duration(ttl) * time.Second
			return t.request(func(ctx context.Context) (*client.Response, error) {
				if inOrder {
					return api.CreateInOrder(ctx, key, value, &client.CreateInOrderOptions{TTL: life})
				}
				return api.Set(ctx, key, value, &client.SetOptions{TTL: life, PrevExist: client.PrevNoExist})
			}, t.print)
		})
	})
}

func (t keyCommands) rm() *cobra.Command {
	var opts client.DeleteOptions
	var index int
	return t.leaf("rm <key>", "Removes a key or a directory", func(fs *flagSet) {
		fs.BoolVar(&opts.Dir, "dir", false, "also an empty directory")
		fs.BoolVar(&opts.Recursive, "recursive", false, "also a directory, with everything below it")
		fs.alias("r", "recursive")
		fs.StringVar(&opts.PrevValue, "with-value", "", "only if the key has this value")
		fs.IntVar(&index, "with-index", 0, "only if the key was last modified at this index")
	}, func(args []string) error {
		opts.PrevIndex = uint64(index)
		return t.remove(args, &opts)
	})
}

func (t keyCommands) rmdir() *cobra.Command {
	return t.leaf("rmdir <key>", "Removes an empty directory or a key", nil, func(args []string) error {
		return t.remove(args, &client.DeleteOptions{Dir: true})
	})
}

func (t keyCommands) remove(args []string, opts *client.DeleteOptions) error {
	return t.onKey(args, func(api client.KeysAPI, key string) error {
		return t.request(func(ctx context.Context) (*client.Response, error) { return api.Delete(ctx, key, opts) },
			func(resp *client.Response) error {
				if resp.Node.Dir && t.output == "simple" {
					return nil
				}
				return t.print(resp)
			})
	})
}

// print prints an answer about one key in the format of --output. A format that does not
// exist is not an error in etcdctl.
func (t keyCommands) print(resp *client.Response) error {
	before := ""
	if resp.PrevNode != nil {
		before = resp.PrevNode.Value
	}
	switch t.output {
	case "simple":
		if resp.Action == "delete" {
			fmt.Fprintln(t.Stdout, "PrevNode.Value:", before)
		} else {
			fmt.Fprintln(t.Stdout, resp.Node.Value)
		}
	case "extended":
		fmt.Fprintln(t.Stdout, "Key:", resp.Node.Key)
		fmt.Fprintln(t.Stdout, "Created-Index:", resp.Node.CreatedIndex)
		fmt.Fprintln(t.Stdout, "Modified-Index:", resp.Node.ModifiedIndex)
		if resp.PrevNode != nil {
			fmt.Fprintln(t.Stdout, "PrevNode.Value:", before)
		}
		fmt.Fprintln(t.Stdout, "TTL:", resp.Node.TTL)
		fmt.Fprintln(t.Stdout, "Index:", resp.Index)
		if resp.Action != "delete" {
			fmt.Fprintf(t.Stdout, "\n%s\n", resp.Node.Value)
		}
	case "json":
		data, err := json.Marshal(resp)
		if err != nil {
			return plain("%v", err)
		}
		fmt.Fprintf(t.Stdout, "%s\n", data)
	default:
		fmt.Fprintln(t.Stderr, "Unsupported output format:", t.output)
	}
	return nil
}
