package ctl

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func (a lockCommands) lock() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lock <lockname> [exec-command arg1 arg2 ...]",
		Short: "Holds a lock that one client at a time can have",
		Long: strings.TrimSpace(`
Waits for a lock and holds it until interrupted, or for as long as a command
runs. It prints the key that stands for the lock; it goes, and the lock with it,
when the client does not renew its lease for --ttl seconds.

A command has ETCD_LOCK_KEY and ETCD_LOCK_REV, the revision at which the lock was
taken, in its environment. Its exit code becomes etcdctl's. Put "--" before a
command that has flags of its own.`),
		Example: examples(
			"etcdctl lock nightly-backup",
			`etcdctl lock nightly-backup --ttl=30 -- sh -c 'backup --since "$ETCD_LOCK_REV"'`),
	}
	ttl := cmd.Flags().Int("ttl", 10, "seconds after which the lock of a client that is gone is released")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return badArgs("lock takes a lock name argument and an optional command to execute")
		}
		s, err := a.session(cmd)
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		defer s.closeQuietly(c)
		return holder{s}.lock(c, args[0], *ttl, args[1:])
	})
	return cmd
}

// holder is a session that holds a lock or a leadership.
type holder struct{ *session }

// lock holds a lock until a signal arrives, or until a command has run. It does not revoke
// the lease, because that would delete the keys that the command attached to it.
func (s holder) lock(c *clientv3.Client, name string, ttl int, command []string) error {
	alive, err := concurrency.NewSession(c, concurrency.WithTTL(ttl))
	if err != nil {
		return s.rpcError(exitError, err)
	}
	ctx, stop := s.app.UntilSignal(syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	m := concurrency.NewMutex(alive, name)
	if err := m.Lock(ctx); err != nil {
		return fail(exitError, err)
	}
	if len(command) > 0 {
		err := s.runLocked(m, command)
		if unlockErr := m.Unlock(context.Background()); err == nil {
			err = unlockErr
		}
		return err
	}
	r, err := c.Get(ctx, m.Key())
	switch {
	case err != nil:
		return fail(exitError, err)
	case len(r.Kvs) == 0:
		return errors.New("lock lost on init")
	}
	if err := s.out.get(r); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return m.Unlock(context.Background())
	case <-alive.Done():
		return errors.New("session expired")
	}
}

// runLocked runs a command under a lock. The command's exit code is in the error.
func (s holder) runLocked(m *concurrency.Mutex, command []string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append([]string{
		"ETCD_LOCK_KEY=" + m.Key(),
		fmt.Sprintf("ETCD_LOCK_REV=%d", m.Header().GetRevision()),
	}, s.app.Env...)
	cmd.Stdout, cmd.Stderr = s.app.Stdout, s.app.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return fail(exit.ExitCode(), err)
	case errors.As(err, &exit):
		return fail(exitSignaled, err)
	}
	return fail(exitError, err)
}

func (a lockCommands) elect() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "elect <election-name> [proposal]",
		Short: "Takes part in the election of a leader, or watches it",
		Long: strings.TrimSpace(`
Waits until it is elected, prints its key and proposal, and leads until
interrupted. With --listen it prints the key and the proposal of every leader
instead.`),
		Example: examples(
			`etcdctl elect schedulers "$(hostname)"`,
			"etcdctl elect --listen schedulers"),
	}
	listen := cmd.Flags().BoolP("listen", "l", false, "print who leads, instead of taking part")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) != 1 && len(args) != 2:
			return badArgs("elect takes one election name argument and an optional proposal argument")
		case len(args) == 1 && !*listen:
			return badArgs("no proposal argument but -l not set")
		case len(args) == 2 && *listen:
			return badArgs("proposal given but -l is set")
		}
		s, err := a.session(cmd)
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		defer s.closeQuietly(c)
		alive, err := concurrency.NewSession(c)
		if err != nil {
			return s.rpcError(exitError, err)
		}
		ctx, stop := a.UntilSignal(syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if *listen {
			return holder{s}.observe(ctx, alive, args[0])
		}
		return holder{s}.campaign(ctx, alive, args[0], args[1])
	})
	return cmd
}

// observe prints every leader until a signal arrives.
func (s holder) observe(ctx context.Context, alive *concurrency.Session, election string) error {
	for r := range concurrency.NewElection(alive, election).Observe(ctx) {
		if err := s.out.get(r); err != nil {
			return err
		}
	}
	if ctx.Err() == nil {
		return errors.New("elect: observer lost")
	}
	return nil
}

// campaign waits to be elected, and leads until a signal arrives.
func (s holder) campaign(ctx context.Context, alive *concurrency.Session, election, proposal string) error {
	e := concurrency.NewElection(alive, election)
	if err := e.Campaign(ctx, proposal); err != nil {
		return fail(exitError, err)
	}
	r, err := alive.Client().Get(ctx, e.Key())
	if err != nil {
		return fail(exitError, err)
	}
	if err := s.out.get(r); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return e.Resign(context.Background())
	case <-alive.Done():
		return errors.New("elect: session expired")
	}
}
