package utl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/internal/datadir"
	"quorate/internal/diagnose"
	"quorate/internal/durable"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// memberCommands are the commands that repair a member.
type memberCommands struct{ *app }

func (a memberCommands) member() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "member <subcommand>",
		Short:   "Repairs a member from the other members of its cluster",
		Example: "  etcdutl member rebuild --data-dir /var/lib/etcd --endpoints http://10.0.0.2:2379",
	}
	cmd.AddCommand(a.rebuildCommand())
	return cmd
}

// rebuildFlags are the flags of member rebuild.
type rebuildFlags struct {
	dataDir, walDir, user string
	endpoints             []string
	tls                   transport.TLSInfo
	timeout               time.Duration // for the connection to an endpoint, and a short request
}

func (a memberCommands) rebuildCommand() *cobra.Command {
	f := rebuildFlags{timeout: dialTimeout}
	cmd := &cobra.Command{
		Use:   "rebuild --data-dir {dir} --endpoints {client URLs of other members}",
		Short: "Replaces the damaged store of a stopped member by the state of another member",
		Long: strings.TrimSpace(`
Replaces the damaged store of a stopped member by the state of another member. The
member keeps its identity, its vote and its raft log, which must not be damaged: a
member that has lost a part of its log must be removed and added again. The damaged
store is kept in member/damaged-store; it may be removed when the member runs.`),
		Example: "  etcdutl member rebuild --data-dir /var/lib/etcd --endpoints http://10.0.0.2:2379,http://10.0.0.3:2379",
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return badArgs("member rebuild takes no arguments")
			}
			return a.rebuild(cmd.Context(), f)
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&f.dataDir, "data-dir", "", "Path to the data directory of the stopped member")
	fs.StringVar(&f.walDir, "wal-dir", "", "Path to the WAL directory, if the member has its own")
	fs.StringSliceVar(&f.endpoints, "endpoints", nil, "Client URLs of other members of the cluster")
	fs.StringVar(&f.tls.TrustedCAFile, "cacert", "", "CA certificate of the servers, for https endpoints")
	fs.StringVar(&f.tls.CertFile, "cert", "", "Certificate to identify with")
	fs.StringVar(&f.tls.KeyFile, "key", "", "Key of --cert")
	fs.StringVar(&f.user, "user", "", "User and password, as name:password, if authentication is enabled; the user must have the role root")
	for _, n := range []string{"data-dir", "endpoints"} {
		if err := cmd.MarkFlagRequired(n); err != nil {
			panic(err) // the flags are registered above
		}
	}
	dirFlags(cmd, "data-dir", "wal-dir")
	return cmd
}

// dialTimeout is the timeout of member rebuild.
const dialTimeout = 10 * time.Second

func (a memberCommands) rebuild(ctx context.Context, f rebuildFlags) error {
	l := datadir.Layout{FS: vfs.Default, DataDir: f.dataDir, WALDir: f.walDir}
	if err := checkDataDir(l); err != nil {
		return err
	}
	log, err := raftlog.Inspect(l.FS, l.WAL(), nil)
	if err != nil {
		return fmt.Errorf("%w (%w)", err, datadir.ErrLogDamaged)
	}
	c, err := f.client(ctx)
	if err != nil {
		return err
	}
	cli, err := clientv3.New(c)
	if err != nil {
		return f.unanswered(c, fmt.Errorf("--endpoints %s: %w", strings.Join(f.endpoints, ","), err))
	}
	defer cli.Close()
	if err := durable.MkdirAll(l.FS, l.Snap()); err != nil {
		return err
	}
	file := l.FS.PathJoin(l.Snap(), "tmp-rebuild.db") // a start removes it
	defer l.FS.Remove(file)
	if err := a.fetch(ctx, cli, f.timeout, file, log.Metadata); err != nil {
		return f.unanswered(c, err)
	}
	var aside string
	err = a.patiently(func() (err error) {
		aside, err = datadir.Rebuild(ctx, l, file, datadir.Options{Version: membership.Own, Logger: a.lg})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "The store of member %s is rebuilt; start the member. The damaged store is kept in %s\n",
		log.Metadata.NodeID, aside)
	return nil
}

// unanswered adds to the error of a request, if there was no answer, why not.
func (f *rebuildFlags) unanswered(c clientv3.Config, err error) error {
	how := diagnose.Client{TLS: c.TLS, Certificate: f.tls.CertFile != "", Limit: f.timeout.String()}
	return &exitErr{code: exitError, err: err, notes: how.Notes(err, f.endpoints)}
}

// client returns the configuration of a client of the endpoints.
func (f *rebuildFlags) client(ctx context.Context) (clientv3.Config, error) {
	c := clientv3.Config{Context: ctx, Endpoints: f.endpoints, DialTimeout: f.timeout, Logger: zap.NewNop()}
	if f.tls.TrustedCAFile != "" || !f.tls.Empty() {
		tc, err := f.tls.ClientConfig()
		if err != nil {
			return c, err
		}
		c.TLS = tc
	} else if len(f.endpoints) > 0 && strings.HasPrefix(f.endpoints[0], "https://") {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if f.user != "" {
		name, password, ok := strings.Cut(f.user, ":")
		if !ok {
			return c, badArgs("--user must be name:password")
		}
		c.Username, c.Password = name, password
	}
	return c, nil
}

// fetch saves the state of the cluster that own belongs to in file, as etcdctl snapshot
// save does, and checks its checksum.
func (a memberCommands) fetch(ctx context.Context, cli *clientv3.Client, timeout time.Duration, file string, own raftlog.Metadata) (err error) {
	short, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	members, err := cli.MemberList(short)
	if err != nil {
		return fmt.Errorf("ask the cluster for its members: %w", err)
	}
	if id := ids.Cluster(members.Header.GetClusterId()); id != own.ClusterID {
		return fmt.Errorf("--endpoints are of cluster %s, the member is of cluster %s", id, own.ClusterID)
	}
	r, err := cli.SnapshotWithVersion(ctx)
	if err != nil {
		return fmt.Errorf("fetch the state: %w", err)
	}
	defer r.Snapshot.Close()
	out, err := durable.Create(vfs.Default, file+".part")
	if err != nil {
		return err
	}
	n, err := io.Copy(out, r.Snapshot)
	if err == nil {
		err = out.Commit(file)
	}
	if err != nil {
		return fmt.Errorf("fetch the state: %w", errors.Join(err, out.Discard()))
	}
	a.lg.Info("fetched the state of another member", zap.Int64("bytes", n), zap.String("version", r.Version))
	return checkHash(file, false)
}
