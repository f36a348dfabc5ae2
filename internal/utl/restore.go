package utl

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"go.etcd.io/etcd/client/pkg/v3/types"

	"quorate/internal/datadir"
	"quorate/internal/membership"
	"quorate/internal/transport"
)

func (a snapshotCommands) snapshot() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot <subcommand>",
		Short:   "Restores a member from a snapshot file, and inspects such files",
		Example: "  etcdutl snapshot restore backup.db --data-dir /var/lib/etcd",
	}
	cmd.AddCommand(a.restoreCommand(), inspectCommands(a).statusCommand())
	return cmd
}

// restoreFlags are the flags of snapshot restore.
type restoreFlags struct {
	dataDir, walDir, cluster, token, peerURLs, name string
	skipHashCheck, markCompacted                    bool
	mapSize, bump                                   uint64
}

// mapBytes is etcd's default of --initial-memory-map-size.
const mapBytes = 10 << 30

func (a snapshotCommands) restoreCommand() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore <filename> --data-dir {output dir} [options]",
		Short: "Makes the data directory of a member of a new cluster from a snapshot file",
		Long: strings.TrimSpace(`
Makes the data directory of a member of a new cluster from a snapshot file, which
'etcdctl snapshot save' of this program or of etcd has written. Every member of
the new cluster is restored from the same file, each with its own --name and
--initial-advertise-peer-urls and all with the same --initial-cluster.`),
		Example: "  etcdutl snapshot restore backup.db --data-dir /var/lib/etcd --name m1 \\\n" +
			"    --initial-cluster m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380 \\\n" +
			"    --initial-advertise-peer-urls http://10.0.0.1:2380",
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("snapshot restore requires exactly one argument")
			}
			if f.bump == 0 && f.markCompacted || f.bump > 0 && !f.markCompacted {
				return badArgs("--mark-compacted required if --revision-bump > 0")
			}
			return a.restore(cmd.Context(), args[0], f)
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&f.dataDir, "data-dir", "", "Path to the output data directory")
	fs.StringVar(&f.walDir, "wal-dir", "", "Path to the WAL directory (use --data-dir if none given)")
	fs.StringVar(&f.cluster, "initial-cluster", "default=http://localhost:2380", "Initial cluster configuration for restore bootstrap")
	fs.StringVar(&f.token, "initial-cluster-token", "etcd-cluster", "Initial cluster token for the etcd cluster during restore bootstrap")
	fs.StringVar(&f.peerURLs, "initial-advertise-peer-urls", "http://localhost:2380", "List of this member's peer URLs to advertise to the rest of the cluster")
	fs.StringVar(&f.name, "name", "default", "Human-readable name for this member")
	fs.BoolVar(&f.skipHashCheck, "skip-hash-check", false, "Ignore snapshot integrity hash value (required if copied from data directory)")
	fs.Uint64Var(&f.mapSize, "initial-memory-map-size", mapBytes, "Accepted for compatibility with scripts: nothing is mapped into memory here")
	fs.Uint64Var(&f.bump, "bump-revision", 0, "How much to increase the latest revision after restore")
	fs.BoolVar(&f.markCompacted, "mark-compacted", false, "Mark the latest revision after restore as the point of scheduled compaction (required if --bump-revision > 0, disallowed otherwise)")
	dirFlags(cmd, "data-dir", "wal-dir")
	return cmd
}

// dirFlags makes shells complete flags with directories.
func dirFlags(cmd *cobra.Command, names ...string) {
	for _, n := range names {
		if err := cmd.MarkFlagDirname(n); err != nil {
			panic(err) // the flags are registered above every call
		}
	}
}

func (a snapshotCommands) restore(ctx context.Context, file string, f restoreFlags) error {
	r, err := a.newMember(ctx, f)
	if err != nil {
		return err
	}
	r.File = file
	l := datadir.Layout{FS: vfs.Default, DataDir: f.dataDir, WALDir: f.walDir}
	if l.DataDir == "" {
		l.DataDir = f.name + ".etcd"
	}
	if l.WALDir == "" {
		l.WALDir = filepath.Join(l.DataDir, "member", "wal")
	}
	if there, err := datadir.RemoveInterrupted(l); err != nil {
		return fmt.Errorf("remove what an interrupted restore has left: %w", err)
	} else if there {
		a.lg.Info("removed what an interrupted restore has left", zap.String("data-dir", l.DataDir))
	}
	if names, err := os.ReadDir(l.DataDir); err == nil && len(names) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("data-dir %q not empty or could not be read", l.DataDir)
	}
	if _, err := os.Stat(l.WALDir); err == nil {
		return fmt.Errorf("wal-dir %q exists", l.WALDir)
	}
	fields := []zap.Field{zap.String("path", file), zap.String("wal-dir", l.WALDir), zap.String("data-dir", l.DataDir),
		zap.String("snap-dir", filepath.Join(l.DataDir, "member", "snap")), zap.Uint64("initial-memory-map-size", f.mapSize)}
	a.lg.Info("restoring snapshot", fields...)
	if err := checkHash(file, f.skipHashCheck); err != nil {
		return err
	}
	if err := datadir.RestoreInto(ctx, l, r, datadir.Options{Version: membership.Own, Logger: a.lg}); err != nil {
		return err
	}
	a.lg.Info("restored snapshot", fields...)
	return nil
}

// newMember computes the ids of the new cluster, after the checks of a first start.
func (a snapshotCommands) newMember(ctx context.Context, f restoreFlags) (r datadir.Restore, err error) {
	peers, err := types.NewURLs(strings.Split(f.peerURLs, ","))
	if err != nil {
		return r, err
	}
	initial, err := membership.ParseInitialCluster(f.cluster)
	if err != nil {
		return r, err
	}
	same := func(x, y []string) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		return transport.SameURLs(ctx, a.lg, x, y)
	}
	if err := membership.CheckFounder(initial, f.name, peers.StringSlice(), same); err != nil {
		return r, err
	}
	if r.Founders, r.ClusterID, err = membership.Founders(initial, f.token); err != nil {
		return r, err
	}
	for _, m := range r.Founders {
		if m.Name == f.name {
			r.LocalID = m.ID
		}
	}
	if f.bump > 1<<62 {
		return r, fmt.Errorf("--bump-revision %d is too large", f.bump)
	}
	r.BumpRevision = int64(f.bump)
	return r, nil
}

// checkHash compares a file with the SHA-256 that follows its database. It runs before
// anything is written.
func checkHash(file string, skip bool) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < sha256.Size {
		return fmt.Errorf("%s is too short for a snapshot: %d bytes", file, st.Size())
	}
	size := st.Size() - sha256.Size
	switch {
	case skip:
		return nil
	case st.Size()%512 != sha256.Size:
		return errors.New("snapshot missing hash but --skip-hash-check=false")
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return err
	}
	want := make([]byte, sha256.Size)
	if _, err := f.ReadAt(want, size); err != nil {
		return err
	}
	if got := h.Sum(nil); string(got) != string(want) {
		return fmt.Errorf("expected sha256 %v, got %v", want, got)
	}
	return nil
}
