package datadir

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/engine/pebble"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// ErrLogDamaged is wrapped by errors of Rebuild about a log that cannot be trusted.
var ErrLogDamaged = errors.New("a member that has lost a part of its log may have voted, or acknowledged entries, without knowing it any more; " +
	"it cannot keep its identity: remove it from its cluster and add it again with an empty directory")

// Rebuild replaces the store of a stopped member by the state in file, a database that a
// peer has written, and returns where the old store was moved to. The member keeps its
// identity, its vote, and every entry that it has acknowledged: the log is read to the end,
// and is not changed. The next start treats the new store as it does an installed snapshot:
// it replays the log from there, or lets the log begin there if the state is newer.
//
// That is safe because what a peer has applied is committed. A member whose log is damaged
// is refused with ErrLogDamaged. Until the file STORE names the new store, an error or a
// crash leaves the directory as it was.
func Rebuild(ctx context.Context, l Layout, file string, o Options) (aside string, err error) {
	o = o.withDefaults()
	p, err := l.readPointer()
	if err != nil {
		return "", err
	}
	if kind, err := l.Kind(); err != nil {
		return "", err
	} else if kind != Ours {
		return "", fmt.Errorf("there is no store of this program in %s that could be rebuilt", l.Member())
	}
	log, err := raftlog.Open(l.FS, l.WAL(), raftlog.Options{KeepSegments: -1, NoBackground: true, Logger: o.Logger})
	var damaged *raftlog.CorruptError
	if errors.As(err, &damaged) || errors.Is(err, raftlog.ErrNotFound) {
		return "", fmt.Errorf("%w (%w)", err, ErrLogDamaged)
	}
	if err != nil {
		return "", fmt.Errorf("open raft log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	own := log.Metadata()
	if err := l.CheckOwner(own.NodeID, own.ClusterID); err != nil {
		return "", err
	}
	meta, err := snapshot.PeekMeta(ctx, file, snapshot.Options{FS: l.FS})
	if err != nil {
		return "", err
	}
	if err := fitsLog(log, meta); err != nil {
		return "", err
	}
	dir := l.NewStore(meta.ConsistentIndex)
	if l.FS.PathBase(dir) == p.store {
		dir += ".1" // the damaged one has the same position
	}
	if err := l.FS.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("remove remains of an earlier attempt: %w", err)
	}
	h := Home{Layout: l, Log: log, Member: own.NodeID, Cluster: own.ClusterID, Logger: o.Logger}
	if err := h.refill(ctx, dir, file, meta, o); err != nil {
		return "", errors.Join(err, l.FS.RemoveAll(dir))
	}
	if err := durable.SyncDir(l.FS, l.Member()); err != nil {
		return "", err
	}
	name, err := l.freeName("damaged-" + p.store)
	if err != nil {
		return "", err
	}
	if err := l.Use(dir); err != nil {
		return "", err
	}
	aside = l.FS.PathJoin(l.Member(), name)
	if err := renameIfThere(l.FS, l.FS.PathJoin(l.Member(), p.store), aside); err != nil {
		return "", fmt.Errorf("the store is rebuilt; move the damaged one aside: %w", err)
	}
	o.Logger.Info("rebuilt the store", zap.String("store", dir), zap.Uint64("applied-index", uint64(meta.ConsistentIndex)), zap.String("damaged-store", aside))
	return aside, nil
}

// fitsLog refuses a state from which the log does not go on, or that is of another history.
func fitsLog(log *raftlog.Log, meta snapshot.Meta) error {
	at := meta.ConsistentIndex
	if at == 0 || meta.Term == 0 || meta.ConfState == nil {
		return errors.New("the state of the peer does not say which entry it has applied")
	}
	if meta.StorageVersion == "" {
		return errors.New("the state is of a member of etcd 3.5, which keeps the data of the v2 API elsewhere: take it from a member of another release")
	}
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	if need := max(ids.Index(first)-1, log.Mark().Index); at < need {
		return fmt.Errorf("the peer has applied entry %d, and the raft log of this member begins after entry %d: take the state from a peer that is not behind", at, need)
	}
	if at > ids.Index(log.HardState().GetCommit()) {
		return nil
	}
	term, err := log.Term(uint64(at))
	if err != nil {
		return fmt.Errorf("term of entry %d: %w", at, err)
	}
	if ids.Term(term) != meta.Term {
		return fmt.Errorf("the peer has applied entry %d of term %d, which is committed with term %d here: it is a member of another cluster", at, meta.Term, term)
	}
	return nil
}

// refill fills a new store in dir from file.
func (h Home) refill(ctx context.Context, dir, file string, meta snapshot.Meta, o Options) (err error) {
	open := o.OpenEngine
	if open == nil {
		open = func(dir string) (engine.Engine, error) { return pebble.Open(dir, pebbleOptions(h.Layout, o.Logger)) }
	}
	eng, err := open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	got, err := snapshot.Read(ctx, file, eng, snapshot.Options{FS: h.Layout.FS, BatchBytes: o.BatchBytes, Progress: reporter(o.Logger, file, o.Working)})
	if err != nil {
		return err
	}
	if got.ConsistentIndex != meta.ConsistentIndex {
		return fmt.Errorf("%s has changed while it was read", file)
	}
	c := membership.New(membership.Options{ServerVersion: o.Version, Aside: true})
	if err := c.Load(eng); err != nil {
		return err
	}
	if _, ok := c.Member(h.Member); !ok {
		return fmt.Errorf("the cluster of the peer has no member %s: this member was removed, or it belongs to another cluster", h.Member)
	}
	b := eng.NewBatch()
	b.Set(ownerKey, h.owner())
	b.Set(installKey, binary.BigEndian.AppendUint64(nil, uint64(meta.ConsistentIndex)))
	if err := b.Commit(); err != nil {
		return err
	}
	return eng.Flush(ctx)
}
