package utl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/coreos/go-semver/semver"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/boltdb"
	"quorate/internal/clock"
	"quorate/internal/command"
	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

type migrateFlags struct {
	dataDir, walDir, target string
	force, toEtcd, dropV2   bool
}

func (a migrateCommands) migrate() *cobra.Command {
	var f migrateFlags
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Hands a data directory over to etcd, or changes the release that its files are for",
		Long: strings.TrimSpace(`
With --to-etcd, turns the data directory of a member that is not running into one
on which etcd starts as the same member, with the same data. The store of this
program is kept in member/store.quorate; it may be removed when etcd runs. If the
command is interrupted, run it again. (The way here needs no command: this
program's etcd converts a directory of etcd when it starts on it.)

Without it, sets the storage version of the directory, as etcd's etcdutl does.`),
		Example: "  etcdutl migrate --to-etcd --data-dir /var/lib/etcd\n" +
			"  etcdutl migrate --to-etcd --target-version 3.6 --data-dir /var/lib/etcd\n" +
			"  etcdutl migrate --target-version 3.6 --data-dir /var/lib/etcd",
		PreRun: func(cmd *cobra.Command, _ []string) {
			if f.toEtcd { // the target then has a default
				delete(cmd.Flags().Lookup("target-version").Annotations, cobra.BashCompOneRequiredFlag)
			}
		},
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if f.toEtcd && f.target == "" {
				f.target = membership.Own.Short()
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
	fs.BoolVar(&f.toEtcd, "to-etcd", false, "Make the directory one of etcd (of release --target-version, by default "+membership.Own.Short()+")")
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
	sv, err := semver.NewVersion(text + ".0")
	if err != nil {
		return membership.Version{}, badArgs("failed to parse target version: %w", err)
	}
	v := membership.Version{Major: uint64(max(sv.Major, 0)), Minor: uint64(max(sv.Minor, 0))}
	if v.Less(membership.FirstTakenOver) {
		return v, badArgs("target version %q not supported. Minimal \"3.5\"", v.Short())
	}
	return v, nil
}

// checkDataDir refuses a directory without a store, in etcd's words.
func checkDataDir(l datadir.Layout) error {
	kind, err := l.Kind()
	if err == nil && kind == datadir.Empty {
		if _, err = os.Stat(l.DB()); err == nil { // the directory that keeps etcd out
			err = fmt.Errorf("there is no store in %s", l.Member())
		}
	}
	return err
}

func (a migrateCommands) toEtcd(ctx context.Context, l datadir.Layout, target membership.Version, dropV2 bool) error {
	if own := membership.Own; own.MajorMinor().Less(target) {
		return badArgs("target version %q not supported. Maximal %q", target.Short(), own.Short())
	}
	var aside string
	err := a.patiently(func() (err error) {
		aside, err = datadir.Leave(ctx, l, target, datadir.Options{Version: membership.Own, Logger: a.lg, DropV2: dropV2})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "%s is a data directory of etcd %s now; the old store is kept in %s\n", l.DataDir, target.Short(), aside)
	fmt.Fprintf(a.Stdout, "If the command line of the service has flags that etcd %s does not define, remove them, or it exits with 'flag provided but not defined': %s\n",
		target.Short(), strings.Join(undefined(target), ", "))
	return nil
}

// undefined returns the flags of this program that etcd of a release does not define. Variables
// and keys of the configuration file need no care: etcd passes over those that it does not know.
func undefined(target membership.Version) []string {
	names := []string{"--join", "--scrub-interval", "--digest-check-time", "--debug", "--log-output", "--log-package-levels"}
	if target.Less(membership.FirstWithoutV2) {
		return append(names, "and those that came after etcd 3.5")
	}
	names = append(names, "--enable-v2", "--proxy", "--proxy-*")
	if target.Less(membership.FirstPureV3) {
		return append(names, "--experimental-enable-v2v3")
	}
	return append(names, "--discovery", "--discovery-proxy", "--experimental-*")
}

// versioned is a store, of Quorate or of etcd, that has a storage version.
type versioned interface {
	// StorageVersion returns the release, "" if the store has none, and the term of the
	// newest entry that it holds, 0 if the store has none.
	StorageVersion() (version string, term ids.Term, err error)
	// SetStorageVersion writes the release durably; "" removes it.
	SetStorageVersion(version string) error
	Close() error
}

// ourStore is a store of Quorate as versioned.
type ourStore struct{ engine.Engine }

var storageVersionKey = engine.Meta.K([]byte("storageVersion"))

func (s ourStore) StorageVersion() (string, ids.Term, error) {
	text, err := snapshot.StorageVersion(s.Engine)
	if err != nil {
		return "", 0, err
	}
	stored, err := s.Get(nil, storageVersionKey)
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return "", 0, err
	}
	if v, err := membership.ParseVersion(string(stored)); err == nil && membership.Own.Less(v) {
		text = string(stored) // set by force
	}
	_, term, err := apply.Position(s.Engine)
	return text, term, err
}

func (s ourStore) SetStorageVersion(version string) error {
	if version == "" {
		version = membership.V35.String() // without a stored version, the cluster version applies here
	}
	b := s.NewBatch()
	b.Set(storageVersionKey, []byte(version))
	if err := b.Commit(); err != nil {
		return err
	}
	return s.Flush(context.Background())
}

// openVersioned opens the store of a directory, of Quorate or of etcd.
func (a migrateCommands) openVersioned(l datadir.Layout) (v versioned, err error) {
	kind, err := l.Kind()
	if err != nil {
		return nil, err
	}
	if kind == datadir.Etcds {
		return boltdb.Open(l.DB(), a.lockTimeout)
	}
	err = a.patiently(func() error {
		eng, err := datadir.OpenStore(l, a.lg)
		v = ourStore{eng}
		return err
	})
	return v, err
}

// setStorageVersion is etcd's migrate: it sets the storage version of the files, after
// checking that this release can read the log.
func (a migrateCommands) setStorageVersion(l datadir.Layout, target membership.Version, force bool) (err error) {
	store, err := a.openVersioned(l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	current, err := storedVersion(store)
	if err != nil {
		a.lg.Error("failed to detect storage version. Please make sure you are using data dir from etcd v3.5 and older")
		return err
	}
	if current == target {
		a.lg.Info("storage version up-to-date", zap.String("storage-version", current.Short()))
		return nil
	}
	least, err := logVersion(l)
	if err != nil {
		a.lg.Error("Failed to finalize config", zap.Error(err))
		return err
	}
	if err := a.planVersion(current, target, least); err != nil {
		if !force {
			return err
		}
		a.lg.Info("normal migrate failed, trying with force", zap.Error(err))
		if target.Less(membership.FirstStorageVersion) {
			a.lg.Warn("forcefully cleared storage version")
		} else {
			a.lg.Warn("forcefully set storage version", zap.String("storage-version", target.Short()))
		}
	}
	text := target.String()
	if target.Less(membership.FirstStorageVersion) {
		text = "" // introduced by 3.6
	}
	return store.SetStorageVersion(text)
}

// storedVersion returns the storage version. Files from before 3.6 have none.
func storedVersion(s versioned) (membership.Version, error) {
	text, term, err := s.StorageVersion()
	switch {
	case err != nil:
		return membership.Version{}, err
	case text == "" && term == 0:
		return membership.Version{}, errors.New("missing term information")
	case text == "":
		return membership.V35, nil
	}
	v, err := membership.ParseVersion(text)
	return v.MajorMinor(), err
}

// planVersion refuses what etcd refuses; least is the release that the log needs.
func (a migrateCommands) planVersion(current, target, least membership.Version) error {
	if current.Major != target.Major {
		a.lg.Error("Changing major storage version is not supported",
			zap.Stringer("storage-version", current), zap.Stringer("target-storage-version", target))
		return errors.New("cannot create migration plan: changing major storage version is not supported")
	}
	for v := current; v != target; {
		step := v // the later of the two releases of a step, which must be known
		if v.Less(target) {
			step.Minor++
			v.Minor++
		} else {
			v.Minor--
		}
		if step.Less(membership.FirstStorageVersion) || membership.Own.MajorMinor().Less(step) {
			return fmt.Errorf("cannot create migration plan: version %q is not supported", step)
		}
	}
	if target.Less(current) && target.Less(least) {
		return fmt.Errorf("cannot downgrade storage, WAL contains newer entries, as the target version (%s) is lower than the version (%s) detected from WAL logs",
			target, least)
	}
	for v := current; v != target; {
		if v.Less(target) {
			v.Minor++
		} else {
			v.Minor--
		}
		a.lg.Info("updated storage version", zap.Stringer("new-storage-version", v))
	}
	return nil
}

// logVersion returns the oldest release that understands every entry after the newest
// mark of the log; the zero version if there is none.
func logVersion(l datadir.Layout) (least membership.Version, err error) {
	c, err := raftlog.Inspect(l.FS, l.WAL(), nil)
	if errors.Is(err, raftlog.ErrNotFound) {
		return least, fmt.Errorf("failed to get the lastest snapshot: %w", err)
	}
	if err != nil {
		return least, fmt.Errorf("failed to read wal: %w", err)
	}
	_, err = raftlog.Inspect(l.FS, l.WAL(), func(index ids.Index, _ ids.Term, t raftpb.EntryType, data []byte) error {
		if index <= c.Mark.Index || t != raftpb.EntryNormal || len(data) == 0 {
			return nil
		}
		if is, _, carried := v2request.Look(data); is {
			if carried && least.Less(membership.V36) {
				least = membership.V36 // 3.5 does not know the request that carries it
			}
			return nil
		}
		r, err := command.Decode(data)
		if err != nil {
			return nil // of no known kind: requires no later release
		}
		v := membership.V35
		if t := r.DowngradeVersionTest; t != nil { // since 3.6; names the release that it is about
			if v, err = membership.ParseVersion(t.GetVer()); err != nil {
				return err
			}
			if v.Less(membership.V36) {
				v = membership.V36
			}
		}
		if least.Less(v) {
			least = v
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("failed to read wal: %w", err)
	}
	return least, err
}

func (a defragCommands) defragCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "defrag",
		Short:   "Returns disk space that a data directory no longer needs to the system",
		Example: "  etcdutl defrag --data-dir /var/lib/etcd",
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if err := a.defrag(cmd.Context(), dir); err != nil {
				//lint:ignore ST1005 etcdutl's text
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

func (a defragCommands) defrag(ctx context.Context, dir string) (err error) {
	l := datadir.Layout{FS: vfs.Default, DataDir: dir}
	if err := checkDataDir(l); err != nil {
		return err
	}
	if kind, err := l.Kind(); err != nil {
		return err
	} else if kind == datadir.Etcds {
		return a.defragEtcds(l.DB())
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
	start, before := clock.Now(), sizesOf(eng)
	a.defragmenting(l.Member(), before)
	if err := eng.Compact(ctx); err != nil {
		return err
	}
	a.defragmented(l.Member(), before, sizesOf(eng), clock.Since(start))
	return nil
}

func sizesOf(eng engine.Engine) boltdb.Sizes {
	s := eng.Size()
	return boltdb.Sizes{Total: s.Total, InUse: s.InUse}
}

// defragEtcds defragments a database of etcd.
func (a defragCommands) defragEtcds(db string) error {
	start := clock.Now()
	before, after, err := boltdb.Defrag(db, a.lockTimeout, func(before boltdb.Sizes) { a.defragmenting(db, before) })
	if err == nil {
		a.defragmented(db, before, after, clock.Since(start))
	}
	return err
}

func (a defragCommands) defragmenting(path string, s boltdb.Sizes) {
	a.lg.Info("defragmenting", zap.String("path", path), zap.Int64("current-db-size-bytes", s.Total), zap.String("current-db-size", humanize.Bytes(uint64(s.Total))),
		zap.Int64("current-db-size-in-use-bytes", s.InUse), zap.String("current-db-size-in-use", humanize.Bytes(uint64(s.InUse))))
}

func (a defragCommands) defragmented(path string, before, s boltdb.Sizes, took time.Duration) {
	a.lg.Info("finished defragmenting directory", zap.String("path", path), zap.Int64("current-db-size-bytes-diff", s.Total-before.Total),
		zap.Int64("current-db-size-bytes", s.Total), zap.String("current-db-size", humanize.Bytes(uint64(s.Total))),
		zap.Int64("current-db-size-in-use-bytes-diff", s.InUse-before.InUse),
		zap.Int64("current-db-size-in-use-bytes", s.InUse), zap.String("current-db-size-in-use", humanize.Bytes(uint64(s.InUse))), zap.Duration("took", took))
}
