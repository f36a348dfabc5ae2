package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"quorate/internal/clock"

	"github.com/spf13/cobra"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	clientmirror "go.etcd.io/etcd/client/v3/mirror"
)

// mirrorReport is the interval at which make-mirror prints the number of copied keys.
const mirrorReport = 30 * time.Second

type mirrorFlags struct {
	prefix, destPrefix string
	noDestPrefix       bool
	rev                int64
	maxTxnOps          uint

	cert, key, cacert string
	insecureTransport bool
	user, password    string
}

func (a mirrorCommands) makeMirror() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "make-mirror [options] <destination>",
		Short: "Copies keys to another cluster and keeps the copy up to date",
		Long: strings.TrimSpace(`
Copies the keys to the cluster that has the endpoint <destination>, and then
every change as it happens, until interrupted. Every 30 seconds it prints the
number of changes it has copied. Leases and revisions are not copied.

With --rev it copies changes only, those of that revision and later.`),
		Example: examples(
			"etcdctl --endpoints=10.0.0.1:2379 make-mirror 10.1.0.1:2379",
			"etcdctl make-mirror --prefix=/app/ --dest-prefix=/copy/app/ https://backup:2379 --dest-cacert=ca.crt"),
	}
	f := &mirrorFlags{}
	fs := cmd.Flags()
	fs.StringVar(&f.prefix, "prefix", "", "only keys that begin with this")
	fs.StringVar(&f.destPrefix, "dest-prefix", "", "put this in the place of the prefix in the copy (default: the prefix)")
	fs.BoolVar(&f.noDestPrefix, "no-dest-prefix", false, "leave the prefix off in the copy")
	fs.Int64Var(&f.rev, "rev", 0, "begin with the changes of this revision (0: with all keys as they are now)")
	fs.UintVar(&f.maxTxnOps, "max-txn-ops", 128, "most changes to send in one transaction (the destination's --max-txn-ops)")
	fs.StringVar(&f.cert, "dest-cert", "", "file with the client's TLS certificate for the destination")
	fs.StringVar(&f.key, "dest-key", "", "file with the client's TLS key for the destination")
	fs.StringVar(&f.cacert, "dest-cacert", "", "file with the CA certificates that vouch for the destination")
	fs.BoolVar(&f.insecureTransport, "dest-insecure-transport", true, "do without TLS where the destination does not say https://")
	fs.StringVar(&f.user, "dest-user", "", "name[:password] at the destination (asks for a password if there is none)")
	fs.StringVar(&f.password, "dest-password", "", "password of --dest-user, which then is the name alone")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return badArgs("make-mirror takes one destination argument")
		}
		if f.noDestPrefix && f.destPrefix != "" {
			return badArgs("`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one")
		}
		s, err := a.session(cmd)
		if err != nil {
			return err
		}
		d, err := f.destination(s, args[0])
		if err != nil {
			return err
		}
		dst, err := d.client()
		if err != nil {
			return err
		}
		defer dst.Close()
		src, err := s.client()
		if err != nil {
			return err
		}
		defer src.Close()

		m := &mirror{src: src, dst: dst, prefix: f.prefix, destPrefix: f.destPrefix, rev: f.rev, maxTxnOps: int(f.maxTxnOps)}
		if f.destPrefix == "" && !f.noDestPrefix {
			m.destPrefix = f.prefix
		}
		tick := clock.NewTicker(clock.System, mirrorReport)
		defer tick.Stop()
		return m.run(tick.C, func(copied int64) { fmt.Fprintln(a.Stdout, copied) })
	})
	return cmd
}

// destination returns a session with the destination's endpoint, TLS files and user.
func (f *mirrorFlags) destination(s *session, endpoint string) (*session, error) {
	auth, err := s.app.authConfig(f.user, f.password, "Destination Password: ")
	if err != nil {
		return nil, err
	}
	d := *s
	d.spec.Endpoints = []string{endpoint}
	d.spec.Secure = &clientv3.SecureConfig{Cert: f.cert, Key: f.key, Cacert: f.cacert, InsecureTransport: f.insecureTransport}
	d.spec.Auth = auth
	return &d, nil
}

// mirror copies the keys of one cluster to another.
type mirror struct {
	src, dst           *clientv3.Client
	prefix, destPrefix string
	rev                int64 // first revision to copy; 0: all keys, then later changes
	maxTxnOps          int

	copied atomic.Int64 // changes applied to the destination
}

// run copies until one of the clusters returns an error, and reports at every tick.
func (m *mirror) run(tick <-chan time.Time, report func(copied int64)) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- m.copy(ctx) }()
	for {
		select {
		case err := <-done:
			return err
		case <-tick:
			report(m.copied.Load())
		}
	}
}

func (m *mirror) copy(ctx context.Context) error {
	from := max(m.rev-1, 0) // the syncer expects the last revision to skip
	syncer := clientmirror.NewSyncer(m.src, m.prefix, from)
	if from == 0 {
		if err := m.copyAll(ctx, syncer); err != nil {
			return err
		}
	}
	for r := range syncer.SyncUpdates(ctx) {
		switch {
		case r.CompactRevision != 0:
			return rpctypes.ErrCompacted
		case r.Err() != nil:
			return r.Err()
		}
		if err := m.copyChanges(ctx, r.Events); err != nil {
			return err
		}
	}
	return errors.New("watch is canceled by the server")
}

// copyAll copies the keys as of one revision.
func (m *mirror) copyAll(ctx context.Context, syncer clientmirror.Syncer) error {
	pages, failed := syncer.SyncBase(ctx)
	for page := range pages {
		for _, kv := range page.Kvs {
			if _, err := m.dst.Put(ctx, m.destKey(kv.GetKey()), string(kv.GetValue())); err != nil {
				return err
			}
			m.copied.Add(1)
		}
	}
	return <-failed
}

// copyChanges copies the events of one or several revisions, each revision in a transaction
// of its own, or in several if it has too many changes for one.
func (m *mirror) copyChanges(ctx context.Context, events []*clientv3.Event) error {
	var ops []clientv3.Op
	commit := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := m.dst.Txn(ctx).Then(ops...).Commit()
		if err == nil {
			m.copied.Add(int64(len(ops)))
		}
		ops = nil
		return err
	}
	var rev int64
	for _, ev := range events {
		mod := ev.GetKv().GetModRevision()
		if mod > rev || len(ops) == m.maxTxnOps {
			if err := commit(); err != nil {
				return err
			}
		}
		rev = mod
		key := m.destKey(ev.GetKv().GetKey())
		if ev.GetType() == mvccpb.Event_DELETE {
			ops = append(ops, clientv3.OpDelete(key))
		} else {
			ops = append(ops, clientv3.OpPut(key, string(ev.GetKv().GetValue())))
		}
	}
	return commit()
}

func (m *mirror) destKey(key []byte) string {
	return m.destPrefix + strings.TrimPrefix(string(key), m.prefix)
}
