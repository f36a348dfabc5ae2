package utl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/engine/pebble"
	"quorate/internal/ids"
	"quorate/internal/mvcc"
	"quorate/internal/snapshot"
)

// source is what a command inspects: a database of etcd, or a store of Quorate.
type source struct {
	file  string         // database; empty if store is set
	store datadir.Layout // of a directory of Quorate
}

// find determines what is at path: a database file, or a data directory of etcd or of
// Quorate.
func find(path string) (source, error) {
	st, err := os.Stat(path)
	if err != nil {
		return source{}, err
	}
	if !st.IsDir() {
		return source{file: path}, nil
	}
	l := datadir.Layout{FS: vfs.Default, DataDir: path}
	kind, err := l.Kind()
	switch {
	case err != nil:
		return source{}, err
	case kind == datadir.Etcds:
		return source{file: l.DB()}, nil
	case kind == datadir.Empty:
		return source{}, fmt.Errorf("%s is neither a database nor a data directory", path)
	}
	return source{store: l}, nil
}

// open opens a store of Quorate for reading.
func (a inspectCommands) open(l datadir.Layout) (eng engine.Engine, err error) {
	err = a.patiently(func() error {
		eng, err = datadir.ReadStore(l, zap.NewNop())
		return err
	})
	return eng, err
}

func (a inspectCommands) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status <filename>",
		Short: "Prints hash, revision, keys and size of a snapshot, a database or a data directory",
		Example: "  etcdutl snapshot status backup.db -w table\n" +
			"  etcdutl snapshot status /var/lib/etcd",
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("snapshot status requires exactly one argument")
			}
			src, err := find(args[0])
			if err != nil {
				return err
			}
			if err := a.checkFormat(); err != nil {
				return err
			}
			s, err := a.status(cmd.Context(), src)
			if err != nil {
				return err
			}
			return a.print(statusAnswer(s))
		}),
	}
}

func (a inspectCommands) status(ctx context.Context, src source) (s snapshot.Status, err error) {
	if src.file != "" {
		return snapshot.FileStatus(ctx, src.file, snapshot.Options{})
	}
	eng, err := a.open(src.store)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	return snapshot.StoreStatus(ctx, eng, eng.Size().Total)
}

func (a inspectCommands) hashKVCommand() *cobra.Command {
	var rev ids.Revision
	cmd := &cobra.Command{
		Use:     "hashkv <filename>",
		Short:   "Prints the hash of the key space of a snapshot, a database or a data directory",
		Example: "  etcdutl hashkv backup.db --rev 1000",
		Args:    cobra.ExactArgs(1),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			if err := a.checkFormat(); err != nil {
				return err
			}
			src, err := find(args[0])
			if err != nil {
				return err
			}
			h, err := a.hashKV(cmd.Context(), src, rev)
			if err != nil {
				return err
			}
			return a.print(hashAnswer(h))
		}),
	}
	cmd.Flags().Int64Var((*int64)(&rev), "rev", 0, "maximum revision to hash (default: latest revision)")
	return cmd
}

func (a inspectCommands) hashKV(ctx context.Context, src source, rev ids.Revision) (h hashKV, err error) {
	var eng engine.Engine
	if src.file == "" {
		eng, err = a.open(src.store)
	} else {
		var remove func() error
		if eng, remove, err = load(ctx, src.file); err == nil {
			defer func() { err = errors.Join(err, remove()) }()
		}
	}
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	kv, err := mvcc.Open(eng, mvcc.Options{Manual: true})
	if err != nil {
		return h, err
	}
	defer kv.Close()
	res, err := kv.HashKV(ctx, rev)
	return hashKV{res.Hash, res.HashRev, res.CompactRev}, err
}

// load reads a database into a store in a temporary directory, which bounds the memory
// independent of its size. The file is not changed.
func load(ctx context.Context, file string) (_ engine.Engine, remove func() error, err error) {
	dir, err := os.MkdirTemp("", "etcdutl-")
	if err != nil {
		return nil, nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	eng, err := pebble.Open(filepath.Join(dir, "store"), pebble.Options{OnBackgroundError: func(error) {}})
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	if _, err := snapshot.Read(ctx, file, eng, snapshot.Options{}); err != nil {
		return nil, nil, errors.Join(err, eng.Close(), remove())
	}
	return eng, remove, nil
}
