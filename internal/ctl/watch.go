package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	envWatchKey      = "ETCDCTL_WATCH_KEY"
	envWatchRangeEnd = "ETCDCTL_WATCH_RANGE_END"
)

var (
	errWatchArgs      = errors.New("bad number of arguments")
	errWatchArgsEnv   = errors.New("bad number of arguments (found conflicting environment key)")
	errWatchSeparator = errors.New("bad number of arguments (found separator --, but no commands)")
	errWatchPrefix    = errors.New("`range_end` and `--prefix` are mutually exclusive")
)

type watchFlags struct {
	prefix, prevKV, progress bool
	rev                      int64
}

func (f *watchFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.prefix, "prefix", false, "all keys that begin with the key")
	fs.Int64Var(&f.rev, "rev", 0, "start with the events of this revision (0: from now on)")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print what the key was before the event")
	fs.BoolVar(&f.progress, "progress-notify", false, "have the server say from time to time that there was nothing to say")
}

func (a watchCommands) watch() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch [options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
		Short: "Prints what happens to a key or a range, until interrupted",
		Long: strings.TrimSpace(`
Prints what happens to a key, or to the keys in [key, range_end), until
interrupted. A command after "--" runs once for each event, with
ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and ETCD_WATCH_VALUE
in its environment.

ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END stand for the arguments. With
--interactive, lines "watch [options] key [range_end]" on standard input start
watches, and a line "progress" asks how far they have come.`),
		Example: examples(
			"etcdctl watch --prefix /config/",
			"etcdctl watch greeting --rev=1",
			`etcdctl watch greeting -- sh -c 'echo "$ETCD_WATCH_EVENT_TYPE"'`),
	}
	f := &watchFlags{}
	f.register(cmd.Flags())
	interactive := cmd.Flags().BoolP("interactive", "i", false, "read watches from standard input")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		env, err := a.env()
		if err != nil {
			return err
		}
		if *interactive {
			return a.interactive(cmd, env)
		}
		w, err := newWatch(*f, args, cmd.ArgsLenAtDash(), env)
		if err != nil {
			return fail(exitBadArgs, err)
		}
		s, err := a.session(cmd, envWatchKey, envWatchRangeEnd)
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		p := &watchPrinter{session: s, client: c}
		if err := p.follow(p.begin(w), w.exec); err != nil {
			return err
		}
		if err := c.Close(); err != nil {
			return fail(exitBadConnection, err)
		}
		return fail(exitInterrupted, errors.New("watch is canceled by the server"))
	})
	return cmd
}

// env returns the key and the optional range end from the environment.
func (a watchCommands) env() ([]string, error) {
	key, end := a.Getenv(envWatchKey), a.Getenv(envWatchRangeEnd)
	switch {
	case key == "" && end != "":
		return nil, badArgs("ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END=%q", end)
	case key == "":
		return nil, nil
	case end == "":
		return []string{key}, nil
	}
	return []string{key, end}, nil
}

// watchRequest is one watch: its keys, its start, and the command to run for each event.
type watchRequest struct {
	watchFlags
	key  string
	end  *string // nil: not a range
	exec []string
}

// newWatch parses a watch's arguments. dash is the number of arguments in front of "--", -1
// without it; env replaces the key and the range if it is set.
func newWatch(f watchFlags, args []string, dash int, env []string) (*watchRequest, error) {
	w := &watchRequest{watchFlags: f}
	if dash >= 0 {
		if dash == len(args) {
			return nil, errWatchSeparator
		}
		w.exec = args[dash:]
		args = args[:dash]
	}
	if len(env) > 0 {
		if len(args) > 0 {
			return nil, errWatchArgsEnv
		}
		args = env
	}
	if len(args) == 0 {
		return nil, errWatchArgs
	}
	w.key = args[0]
	if len(args) == 2 {
		if f.prefix {
			return nil, errWatchPrefix
		}
		w.end = &args[1]
	}
	return w, nil
}

func (w *watchRequest) options() []clientv3.OpOption {
	opts := []clientv3.OpOption{clientv3.WithRev(w.rev)}
	if w.end != nil {
		opts = append(opts, clientv3.WithRange(*w.end))
	}
	if w.prefix {
		opts = append(opts, clientv3.WithPrefix())
	}
	if w.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if w.progress {
		opts = append(opts, clientv3.WithProgressNotify())
	}
	return opts
}

// watchPrinter prints watches of one client. Several may run concurrently; the mutex keeps
// their answers apart.
type watchPrinter struct {
	*session
	client *clientv3.Client
	mu     sync.Mutex
}

// begin returns when the server has created the watch.
func (p *watchPrinter) begin(w *watchRequest) clientv3.WatchChan {
	// A watch on a member that has lost its cluster would be silent forever.
	ctx := clientv3.WithRequireLeader(context.Background())
	return p.client.Watch(ctx, w.key, w.options()...)
}

// follow prints a watch, and runs a command for each event, until the server ends the
// watch.
func (p *watchPrinter) follow(watch clientv3.WatchChan, exec []string) error {
	for r := range watch {
		if err := p.print(&r, exec); err != nil {
			return err
		}
	}
	return nil
}

func (p *watchPrinter) print(r *clientv3.WatchResponse, command []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Canceled {
		fmt.Fprintf(p.app.Stderr, "watch was canceled (%v)\n", r.Err())
	}
	if r.IsProgressNotify() {
		fmt.Fprintf(p.app.Stdout, "progress notify: %d\n", r.Header.GetRevision())
	}
	if err := p.out.watch(r); err != nil {
		return err
	}
	if len(command) == 0 {
		return nil
	}
	for _, ev := range r.Events {
		if err := p.run(command, r.Header.GetRevision(), ev); err != nil {
			if p.client.Ctx().Err() != nil {
				return nil // the tool is exiting, and stopped the command
			}
			fmt.Fprintf(p.app.Stderr, "command %q error (%v)\n", command, err)
			return fail(exitError, nil)
		}
	}
	return nil
}

// run executes the command for an event. The values in its environment are quoted as Go
// strings, because they may contain anything.
func (p *watchPrinter) run(command []string, rev int64, ev *clientv3.Event) error {
	c := exec.CommandContext(p.client.Ctx(), command[0], command[1:]...)
	c.Env = append(append([]string(nil), p.app.Env...),
		fmt.Sprintf("ETCD_WATCH_REVISION=%d", rev),
		fmt.Sprintf("ETCD_WATCH_EVENT_TYPE=%q", ev.GetType()),
		fmt.Sprintf("ETCD_WATCH_KEY=%q", ev.GetKv().GetKey()),
		fmt.Sprintf("ETCD_WATCH_VALUE=%q", ev.GetKv().GetValue()))
	c.Stdout, c.Stderr = p.app.Stdout, p.app.Stderr
	return c.Run()
}

// interactive starts a watch for every line that asks for one. It ends with standard
// input, or with the first command of a watch that fails.
func (a watchCommands) interactive(cmd *cobra.Command, env []string) error {
	s, err := a.session(cmd, envWatchKey, envWatchRangeEnd)
	if err != nil {
		return err
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	var watches sync.WaitGroup
	defer watches.Wait()
	defer c.Close()
	p := &watchPrinter{session: s, client: c}
	failed := make(chan error)
	stop := make(chan struct{})
	defer close(stop)
	report := func(err error) {
		select {
		case failed <- err:
		case <-stop:
		}
	}

	// Reading blocks, so it has a goroutine of its own, which outlives the command if that
	// fails.
	lines := make(chan string)
	go func() {
		in := bufio.NewReader(a.Stdin)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				report(fail(exitInvalidInput, fmt.Errorf("error reading watch request line: %w", err)))
				return
			}
			select {
			case lines <- strings.TrimSuffix(line, "\n"):
			case <-stop:
				return
			}
		}
	}()

	for {
		select {
		case err := <-failed:
			return err
		case line := <-lines:
			w, err := p.interactiveLine(line, env)
			if err != nil {
				return err
			}
			if w != nil {
				watch := p.begin(w) // before the next line, which may ask for progress
				watches.Go(func() {
					if err := p.follow(watch, w.exec); err != nil {
						report(err)
					}
				})
			}
		}
	}
}

// interactiveLine executes a line, except for a watch, which it returns. Its error ends the
// command.
func (p *watchPrinter) interactiveLine(line string, env []string) (*watchRequest, error) {
	invalid := func(format string, a ...any) {
		fmt.Fprintf(p.app.Stderr, "Invalid command"+format+"\n", a...)
	}
	words, err := splitWords(line)
	if err != nil {
		return nil, err
	}
	if len(words) == 0 {
		invalid(": %s (watch and progress supported)", line)
		return nil, nil
	}
	switch words[0] {
	case "watch":
		if len(words) < 2 && len(env) == 0 {
			invalid(" %s (command type or key is not provided)", line)
			return nil, nil
		}
		var f watchFlags
		fs := pflag.NewFlagSet("watch", pflag.ContinueOnError)
		fs.SetOutput(p.app.Stderr)
		f.register(fs)
		if err := fs.Parse(words[1:]); err != nil {
			return nil, fail(exitBadArgs, err)
		}
		w, err := newWatch(f, fs.Args(), fs.ArgsLenAtDash(), env)
		switch {
		case errors.Is(err, errWatchPrefix):
			invalid(" %s (%v)", line, err)
			return nil, nil
		case err != nil:
			return nil, fail(exitBadArgs, err)
		}
		return w, nil
	case "progress":
		ctx := clientv3.WithRequireLeader(context.Background())
		if err := p.client.RequestProgress(ctx); err != nil {
			return nil, p.rpcError(exitError, err)
		}
	default:
		invalid(" %s (only support watch)", line)
	}
	return nil, nil
}
