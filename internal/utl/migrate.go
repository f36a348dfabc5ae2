package utl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"go.etcd.io/etcd/api/v3/version"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// ownVersion is the release whose files this tool writes.
func ownVersion() membership.Version {
	v, err := membership.ParseVersion(version.Version)
	if err != nil {
		panic(err) // a constant
	}
	return v
}

var (
	v3_5 = membership.Version{Major: 3, Minor: 5}
	v3_6 = membership.Version{Major: 3, Minor: 6}
)

func short(v membership.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

type migrateFlags struct {
	dataDir, walDir, target string
	force, toEtcd, dropV2   bool
}

func (a *app) migrateCommand() *cobra.Command {
	var f migrateFlags
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Hands a data directory over to etcd, or changes the release that its files are for",
		Long: strings.TrimSpace(`
With --to-etcd, turns the data directory of a member that is not running into one
on which etcd starts as the same member, with the same data. The store of this
program is kept in member/store.quorate; it may be removed when etcd runs. If the
command is interrupted, run it again. (The way here needs no command: this
program's etcd takes a directory of etcd over when it starts on it.)

Without it, sets the storage version of the directory, as etcd's etcdutl does.`),
		Example: "  etcdutl migrate --to-etcd --data-dir /var/lib/etcd\n" +
			"  etcdutl migrate --to-etcd --target-version 3.6 --data-dir /var/lib/etcd\n" +
			"  etcdutl migrate --target-version 3.6 --data-dir /var/lib/etcd",
		PreRun: func(cmd *cobra.Command, _ []string) {
			if f.toEtcd { // the target has a default then
				delete(cmd.Flags().Lookup("target-version").Annotations, cobra.BashCompOneRequiredFlag)
			}
		},
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if f.toEtcd && f.target == "" {
				f.target = short(ownVersion())
			}
			target, err := parseTarget(f.target)
			if err != nil {
				return err
			}
			l := datadir.Layout{FS: vfs.Default, DataDir: f.dataDir, WALDir: f.walDir}
			if err := checkDataDir(l); err != nil {
				return err
			}
			if f.toEtcd {
				return a.toEtcd(cmd.Context(), l, target, f.dropV2)
			}
			return a.setStorageVersion(l, target, f.force)
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&f.dataDir, "data-dir", "", "Path to the etcd data dir")
	fs.StringVar(&f.walDir, "wal-dir", "", "Path to the WAL directory, if the member has its own")
	fs.StringVar(&f.target, "target-version", "", `Target etcd version to migrate contents of data dir. Minimal value 3.5. Format "X.Y" for example 3.6.`)
	fs.BoolVar(&f.force, "force", false, "Ignore migration failure and forcefully override storage version. Not recommended.")
	fs.BoolVar(&f.toEtcd, "to-etcd", false, "Make the directory one of etcd (of release --target-version, by default "+short(ownVersion())+")")
	fs.BoolVar(&f.dropV2, "drop-v2", false, "With --to-etcd and a release since 3.6, which keeps no data of the v2 API: leave that data behind")
	for _, n := range []string{"data-dir", "target-version"} {
		if err := cmd.MarkFlagRequired(n); err != nil {
			panic(err) // the flags are registered above
		}
	}
	dirFlags(cmd, "data-dir", "wal-dir")
	return cmd
}

func parseTarget(text string) (membership.Version, error) {
	if strings.Count(text, ".") != 1 {
		return membership.Version{}, badArgs(`wrong target version format, expected "X.Y", got %q`, text)
	}
	major, minor, _ := strings.Cut(text, ".")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return membership.Version{}, badArgs("failed to parse target version: %w", err)
	}
	v := membership.Version{Major: ma, Minor: mi}
	if v.Less(v3_5) {
		return v, badArgs("target version %q not supported. Minimal \"3.5\"", short(v))
	}
	return v, nil
}

// checkDataDir refuses a directory in which there is no store, with etcd's words.
func checkDataDir(l datadir.Layout) error {
	kind, err := l.Kind()
	if err == nil && kind == datadir.Empty {
		_, err = os.Stat(l.DB())
	}
	return err
}

func (a *app) toEtcd(ctx context.Context, l datadir.Layout, target membership.Version, dropV2 bool) error {
	if own := ownVersion(); own.MajorMinor().Less(target) {
		return badArgs("target version %q not supported. Maximal %q", short(target), short(own))
	}
	var aside string
	err := a.patiently(func() (err error) {
		aside, err = datadir.Leave(ctx, l, target, datadir.Options{Version: ownVersion(), Logger: a.lg, DropV2: dropV2})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "%s is a data directory of etcd %s now; the old store is kept in %s\n", l.DataDir, short(target), aside)
	return nil
}

// setStorageVersion is etcd's migrate: it writes down for which release the files
// are, after checking that this release can read the log.
func (a *app) setStorageVersion(l datadir.Layout, target membership.Version, force bool) (err error) {
	var eng engine.Engine
	err = a.patiently(func() error {
		eng, err = datadir.OpenStore(l, a.lg)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	current, err := storedVersion(eng)
	if err != nil {
		return err
	}
	if current == target {
		a.lg.Info("storage version up-to-date", zap.String("storage-version", short(current)))
		return nil
	}
	if err := a.planVersion(l, current, target); err != nil {
		if !force {
			return err
		}
		a.lg.Info("normal migrate failed, trying with force", zap.Error(err))
		if target.Less(v3_6) {
			a.lg.Warn("forcefully cleared storage version")
		} else {
			a.lg.Warn("forcefully set storage version", zap.String("storage-version", short(target)))
		}
	}
	b := eng.NewBatch()
	b.Set(engine.Meta.K([]byte("storageVersion")), []byte(target.String()))
	if err := b.Commit(); err != nil {
		return err
	}
	return eng.Flush()
}

// storedVersion returns the release that the files are for. Those from before
// 3.6 do not say.
func storedVersion(eng engine.Reader) (membership.Version, error) {
	text, err := snapshot.StorageVersion(eng)
	if err != nil {
		return membership.Version{}, err
	}
	if text == "" {
		_, term, err := apply.Position(eng)
		if err == nil && term == 0 {
			err = errors.New("missing term information")
		}
		return v3_5, err
	}
	v, err := membership.ParseVersion(text)
	return v.MajorMinor(), err
}

func (a *app) planVersion(l datadir.Layout, current, target membership.Version) error {
	if current.Major != target.Major {
		return errors.New("cannot create migration plan: changing major storage version is not supported")
	}
	if own := ownVersion().MajorMinor(); own.Less(target) {
		return fmt.Errorf("cannot create migration plan: version %q is not supported", membership.Version{Major: own.Major, Minor: own.Minor + 1})
	}
	if target.Less(current) {
		least, err := logVersion(l)
		if err != nil {
			return fmt.Errorf("failed to read wal: %w", err)
		}
		if target.Less(least) {
			return fmt.Errorf("cannot downgrade storage, WAL contains newer entries, as the target version (%s) is lower than the version (%s) detected from WAL logs",
				target, least)
		}
	}
	for v := current; v != target; {
		if v.Less(target) {
			v.Minor++
		} else {
			v.Minor--
		}
		a.lg.Info("updated storage version", zap.String("new-storage-version", v.String()))
	}
	return nil
}

// logVersion returns the oldest release that understands every entry behind the
// newest mark of the log; the zero version if there is none.
func logVersion(l datadir.Layout) (least membership.Version, err error) {
	c, err := raftlog.Inspect(l.FS, l.WAL(), nil)
	if err != nil {
		return least, err
	}
	_, err = raftlog.Inspect(l.FS, l.WAL(), func(index, _ uint64, t raftpb.EntryType, data []byte) error {
		if index <= c.Mark.Index || t != raftpb.EntryNormal || len(data) == 0 {
			return nil
		}
		if is, _, carried := command.V2(data); is {
			if carried && least.Less(v3_6) {
				least = v3_6 // 3.5 does not know the request that carries it
			}
			return nil
		}
		r, err := command.Decode(data)
		if err != nil {
			return nil // of nobody that is known: no later release
		}
		v := v3_5
		if t := r.DowngradeVersionTest; t != nil { // since 3.6, and names the release that it is about
			if v, err = membership.ParseVersion(t.GetVer()); err != nil {
				return err
			}
			if v.Less(v3_6) {
				v = v3_6
			}
		}
		if least.Less(v) {
			least = v
		}
		return nil
	})
	return least, err
}

func (a *app) defragCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "defrag",
		Short:   "Gives disk space that a data directory no longer needs back to the system",
		Example: "  etcdutl defrag --data-dir /var/lib/etcd",
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if err := a.defrag(cmd.Context(), dir); err != nil {
				return fmt.Errorf("Failed to defragment etcd data[%s] (%w)", dir, err)
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "Required. Defragments a data directory not in use by etcd.")
	if err := cmd.MarkFlagRequired("data-dir"); err != nil {
		panic(err) // the flag is registered above
	}
	dirFlags(cmd, "data-dir")
	return cmd
}

func (a *app) defrag(ctx context.Context, dir string) (err error) {
	l := datadir.Layout{FS: vfs.Default, DataDir: dir}
	if err := checkDataDir(l); err != nil {
		return err
	}
	var eng engine.Engine
	err = a.patiently(func() error {
		eng, err = datadir.OpenStore(l, a.lg)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	start, before := time.Now(), eng.Size().Total
	if err := eng.Compact(ctx); err != nil {
		return err
	}
	a.lg.Info("finished defragmenting directory", zap.String("path", l.Member()), zap.Int64("current-db-size-bytes-diff", eng.Size().Total-before),
		zap.Int64("current-db-size-bytes", eng.Size().Total), zap.Duration("took", time.Since(start)))
	return nil
}
