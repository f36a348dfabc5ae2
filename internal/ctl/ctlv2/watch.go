package ctlv2

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/spf13/cobra"

	client "go.etcd.io/etcd/client/v2"
)

// follow passes the events of a key on until event reports that one is enough, or the user
// interrupts, which is not an error.
func (t watchCommands) follow(api client.KeysAPI, key string, opts *client.WatcherOptions, event func(*client.Response) (enough bool, err error)) error {
	ctx, stop := t.UntilSignal(os.Interrupt)
	defer stop()
	w := api.Watcher(key, opts)
	for {
		resp, err := w.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return refused(exitServerError, err)
		}
		if enough, err := event(resp); enough || err != nil {
			return err
		}
	}
}

func (t watchCommands) watch() *cobra.Command {
	var forever, recursive bool
	var after int
	return t.leaf("watch <key>", "Waits for a change of a key and prints it", func(fs *flagSet) {
		fs.BoolVar(&forever, "forever", false, "go on until Ctrl-C")
		fs.alias("f", "forever")
		fs.IntVar(&after, "after-index", 0, "begin with the first change after this index")
		fs.BoolVar(&recursive, "recursive", false, "also everything below the key")
		fs.alias("r", "recursive")
	}, func(args []string) error {
		return t.onKey(args, func(api client.KeysAPI, key string) error {
			opts := &client.WatcherOptions{AfterIndex: uint64(after), Recursive: recursive}
			return t.follow(api, key, opts, func(resp *client.Response) (bool, error) {
				if resp.Node.Dir {
					return false, nil
				}
				if recursive {
					fmt.Fprintf(t.Stdout, "[%s] %s\n", resp.Action, resp.Node.Key)
				}
				return !forever, t.print(resp)
			})
		})
	})
}

func (t watchCommands) execWatch() *cobra.Command {
	var recursive bool
	var after int
	return t.leaf("exec-watch <key> -- <command> [args...]", "Runs a command for each change of a key", func(fs *flagSet) {
		fs.IntVar(&after, "after-index", 0, "begin with the first change after this index")
		fs.BoolVar(&recursive, "recursive", false, "also everything below the key")
		fs.alias("r", "recursive")
	}, func(args []string) error {
		c, err := t.client()
		if err != nil {
			return err
		}
		if len(args) < 2 {
			return badArgs("key and command to exec required")
		}
		key, command := keyAndCommand(args)
		if len(command) == 0 {
			return badArgs("key and command to exec required")
		}
		opts := &client.WatcherOptions{AfterIndex: uint64(max(after, 0)), Recursive: recursive}
		return t.follow(client.NewKeysAPI(c), key, opts, func(resp *client.Response) (bool, error) {
			if resp.Node.Dir {
				fmt.Fprintf(t.Stderr, "Ignored dir %s change\n", resp.Node.Key)
				return false, nil
			}
			return false, t.spawn(command, resp)
		})
	})
}

// keyAndCommand returns the key and the command of exec-watch. Without "--" between them
// the key comes last, as in etcdctl.
func keyAndCommand(args []string) (key string, command []string) {
	if i := slices.Index(args, "--"); i > 0 {
		return args[0], args[2:]
	}
	last := len(args) - 1
	return args[last], args[:last]
}

// spawn starts a command with an event in its environment, and does not wait for it.
func (t watchCommands) spawn(command []string, resp *client.Response) error {
	cmd := exec.CommandContext(context.Background(), command[0], command[1:]...)
	cmd.Env = append(slices.Clone(t.Env),
		"ETCD_WATCH_ACTION="+resp.Action,
		fmt.Sprintf("ETCD_WATCH_MODIFIED_INDEX=%d", resp.Node.ModifiedIndex),
		"ETCD_WATCH_KEY="+resp.Node.Key,
		"ETCD_WATCH_VALUE="+resp.Node.Value)
	cmd.Stdout, cmd.Stderr = t.Stdout, t.Stderr
	if err := cmd.Start(); err != nil {
		return &failure{exitError, err.Error()}
	}
	go func() { _ = cmd.Wait() }() // its exit does not matter
	return nil
}
