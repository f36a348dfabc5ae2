package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"

	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/durable"
	"quorate/internal/engine/pebble"
	"quorate/internal/ids"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// Without its database, etcd creates an empty one next to a log that it can read, and
// replays what is left of that log: a member with the name and the votes of this one
// and part of its data. So in a directory of Quorate the path of etcd's database is a
// directory, which no release of etcd can open. Next to it is another one that etcd
// tries to remove first, fails to, and thus names in its log.
const (
	guardName   = "tmp_not_for_etcd__first_run_etcdutl_migrate_--to-etcd"
	guardReadMe = "README"
	guardText   = `The data in this directory is not etcd's: it is in member/store, or where the file member/STORE says. So etcd
must not be started here yet, and this file is where etcd has its database. To go over to etcd, stop the
server, run

    etcdutl migrate --to-etcd --data-dir DIR

with the etcdutl of Quorate, and start etcd then.
`
)

// Guard prevents etcd from starting on a directory of Quorate. Existing files are
// left alone.
func (l Layout) Guard() error {
	db, err := l.FS.Stat(l.DB())
	if err == nil && !db.IsDir() {
		return fmt.Errorf("%s is in the way", l.DB())
	}
	for _, dir := range []string{l.FS.PathJoin(l.Snap(), guardName), l.DB()} {
		readme := l.FS.PathJoin(dir, guardReadMe)
		if there, err := exists(l.FS, readme); err != nil || there {
			if err != nil {
				return err
			}
			continue
		}
		if err := durable.MkdirAll(l.FS, dir); err != nil {
			return err
		}
		if err := durable.WriteFile(l.FS, readme, []byte(guardText)); err != nil {
			return err
		}
	}
	return nil
}

// unguard makes room for a database of etcd. A crash after it leaves a log with a mark
// whose state does not exist, which etcd refuses as well.
func (l Layout) unguard() error {
	if err := l.FS.RemoveAll(l.FS.PathJoin(l.Snap(), guardName)); err != nil {
		return err
	}
	db, err := l.FS.Stat(l.DB())
	if errors.Is(err, os.ErrNotExist) || err == nil && !db.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	return l.FS.RemoveAll(l.DB())
}

// hasDB reports whether etcd's database exists.
func (l Layout) hasDB() (bool, error) {
	db, err := l.FS.Stat(l.DB())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && !db.IsDir(), err
}

// goOn decides about a directory that holds a store of Quorate and a database of etcd,
// because etcd was started on it without a migration. Both use the same log, so all
// that etcd has committed since is in it. Our store is used if the log still follows
// it, and etcd's files are moved aside. Anything else is refused and left unchanged.
func goOn(ctx context.Context, l Layout, p pointer, o Options) (err error) {
	db, err := l.FS.Open(l.DB())
	if err != nil {
		return fmt.Errorf("open %s: %w", l.DB(), err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := lockFile(db); err != nil {
		return fmt.Errorf("lock %s: %w: is etcd still running on it?", l.DB(), err)
	}
	theirs, err := snapshot.PeekMeta(ctx, l.DB(), snapshot.Options{FS: l.FS})
	if err != nil {
		return fmt.Errorf("%w (%w)", l.errBoth(), err)
	}
	if inside := (Layout{FS: l.FS, DataDir: l.DataDir}).WAL(); l.WAL() != inside {
		if two, err := raftlog.Probe(l.FS, inside); err != nil || two {
			return fmt.Errorf("%w (there are two raft logs as well, in %s and in %s)", errors.Join(l.errBoth(), err), l.WAL(), inside)
		}
	}
	log, err := raftlog.Inspect(l.FS, l.WAL(), nil)
	if err != nil {
		return fmt.Errorf("%w (%w)", l.errBoth(), err)
	}
	applied, term, err := positionOf(l, p, o)
	if err != nil {
		return err
	}
	if got, err := log.Term(uint64(applied)); err != nil || ids.Term(got) != term {
		return fmt.Errorf("%w (the store of this program has applied entry %d, which the raft log in %s does not follow: it holds entries %d to %d)",
			l.errBoth(), applied, l.WAL(), log.First, log.Last)
	}
	at := theirs.ConsistentIndex
	if got, err := log.Term(uint64(at)); at > 0 && at+1 >= log.First && (err != nil || ids.Term(got) != theirs.Term) {
		return fmt.Errorf("%w (that of etcd has applied entry %d of term %d, which is not in the raft log in %s)", l.errBoth(), at, theirs.Term, l.WAL())
	}
	o.Logger.Warn("etcd was started on this directory, which was not handed over to it; going on with our store, which the raft log follows",
		zap.String("data-dir", l.DataDir), zap.Uint64("applied-index", uint64(applied)), zap.Uint64("applied-index-of-etcd", uint64(at)), zap.Uint64("last-entry", uint64(log.Last)))
	p.task = putAside
	if p.name, err = l.freeName(fmt.Sprintf("snap.etcd-%016x", at)); err != nil {
		return err
	}
	if err := l.writePointer(p); err != nil {
		return err
	}
	return finishPutAside(l, p, o.Logger)
}

// positionOf returns the index and term that the store named by the pointer has applied.
func positionOf(l Layout, p pointer, o Options) (index ids.Index, term ids.Term, err error) {
	opts := pebbleOptions(l, o.Logger)
	opts.ReadOnly = true
	dir := l.FS.PathJoin(l.Member(), p.store)
	if names, err := l.FS.List(dir); err != nil || len(names) == 0 {
		return 0, 0, errors.Join(err, fmt.Errorf("%w (that of this program is empty)", l.errBoth()))
	}
	eng, err := pebble.Open(dir, opts)
	if errors.Is(err, pebble.ErrInUse) {
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("open store %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	return apply.Position(eng)
}
