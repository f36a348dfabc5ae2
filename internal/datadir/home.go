package datadir

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// Home is the data directory of a running member, and the steps in which its parts
// change together. CheckTogether recovers from a crash during or right after any of
// them. The drivers decide when a step runs and on which goroutine. They must not run
// two steps at a time; only Receive is safe for concurrent use.
type Home struct {
	Layout     Layout
	Log        *raftlog.Log
	Member     ids.Member
	Cluster    ids.Cluster
	OpenEngine func(dir string) (engine.Engine, error)
	Logger     *zap.Logger
}

const (
	receivedSuffix = ".snap.db"
	partSuffix     = ".part" // a file that is still being received
)

var (
	ownerKey   = engine.Local.K([]byte("owner"))
	installKey = engine.Local.K([]byte("installed"))
)

// checkOwner compares the member that the store belongs to with the one that the
// log belongs to. It writes the owner into a new store.
func (h Home) checkOwner(eng engine.Engine) error {
	want := h.owner()
	got, err := eng.Get(nil, ownerKey)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		b := eng.NewBatch()
		b.Set(ownerKey, want)
		return b.Commit()
	case err != nil:
		return err
	case !bytes.Equal(got, want):
		return fmt.Errorf("the store is of member and cluster %x, the raft log of %x", got, want)
	}
	return nil
}

func (h Home) owner() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(h.Member)), uint64(h.Cluster))
}

// CheckTogether compares what the store has applied with what the log holds. It
// finishes an installation that was interrupted.
func (h Home) CheckTogether(eng engine.Engine) error {
	applied, term, err := apply.Position(eng)
	if err != nil {
		return err
	}
	first, err := h.Log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := h.Log.LastIndex()
	if err != nil {
		return err
	}
	if err := h.checkOwner(eng); err != nil {
		return fmt.Errorf("%w: --data-dir %s and --wal-dir %s do not belong together", err, h.Layout.DataDir, h.Layout.WAL())
	}
	switch {
	case applied+1 < ids.Index(first):
		return fmt.Errorf("the store in %s has applied entry %d, but the raft log in %s begins at entry %d: one of them is not the current one",
			h.Layout.Member(), applied, h.Layout.WAL(), first)
	case applied > ids.Index(last):
		return h.resumeInstall(eng, applied, term, ids.Index(last))
	}
	// A log that is long enough may still be the one that an installed snapshot was to
	// replace: then its entries are those of a leader that lost.
	if got, err := h.Log.Term(uint64(applied)); err != nil {
		return fmt.Errorf("term of applied entry %d: %w", applied, err)
	} else if ids.Term(got) != term {
		return h.resumeInstall(eng, applied, term, ids.Index(last))
	}
	return nil
}

// resumeInstall finishes an installation that was interrupted between the exchange of
// the store and the reset of the log. In any other case, a log that ends before the
// applied index, or holds another entry there, means that files are missing.
func (h Home) resumeInstall(eng engine.Engine, applied ids.Index, term ids.Term, last ids.Index) error {
	v, err := eng.Get(nil, installKey)
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return err
	}
	if err != nil || len(v) != 8 || ids.Index(binary.BigEndian.Uint64(v)) != applied {
		if applied <= last {
			return fmt.Errorf("the store in %s has applied entry %d of term %d, but the raft log in %s has another entry there: one of them is not the current one",
				h.Layout.Member(), applied, term, h.Layout.WAL())
		}
		return fmt.Errorf("the store in %s has applied entry %d, but the raft log in %s ends at entry %d: log files are missing",
			h.Layout.Member(), applied, h.Layout.WAL(), last)
	}
	cs, err := membership.LoadConfState(eng)
	if err != nil {
		return err
	}
	return h.Log.Reset(raftlog.SnapshotMark{Index: applied, Term: term, ConfState: cs})
}

// Receive stores a snapshot file that a peer sends. The current state stays in use
// until raft has accepted the snapshot. number distinguishes concurrent transfers. A
// file that has changed on its way is refused with snapshot.ErrSeal.
func (h Home) Receive(ctx context.Context, index ids.Index, number uint64, body io.Reader) error {
	fs, sum := h.Layout.FS, crc32.New(castagnoli)
	part := fs.PathJoin(h.Layout.Snap(), fmt.Sprintf("%016x.%d%s", index, number, partSuffix))
	return saveStream(ctx, fs, part, io.TeeReader(snapshot.CheckSeal(body), sum), func() string {
		return fs.PathJoin(h.Layout.Snap(), fmt.Sprintf("%016x.%08x%s", index, sum.Sum32(), receivedSuffix))
	})
}

// received returns the files of a snapshot. The name of each contains the checksum of
// the bytes that were received, since etcd's database file has none of its own.
// There are several if the snapshot was sent more than once.
func (h Home) received(index ids.Index) ([]string, error) {
	fs := h.Layout.FS
	names, err := fs.List(h.Layout.Snap())
	if err != nil {
		return nil, fmt.Errorf("look for the received snapshot: %w", err)
	}
	var paths []string
	for _, name := range names {
		if strings.HasPrefix(name, fmt.Sprintf("%016x.", index)) && strings.HasSuffix(name, receivedSuffix) {
			paths = append(paths, fs.PathJoin(h.Layout.Snap(), name))
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// checkReceived compares a received file with the checksum in its name.
func (h Home) checkReceived(ctx context.Context, path string) error {
	f, err := h.Layout.FS.Open(path)
	if err != nil {
		return fmt.Errorf("open received snapshot: %w", err)
	}
	defer f.Close()
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, contextReader{ctx, f}); err != nil {
		return fmt.Errorf("read received snapshot %s: %w", path, err)
	}
	if !strings.HasSuffix(path, fmt.Sprintf(".%08x%s", sum.Sum32(), receivedSuffix)) {
		return fmt.Errorf("the received snapshot %s has changed on disk: its checksum is %08x now", path, sum.Sum32())
	}
	return nil
}

// Import builds a complete store from a received file, next to the one in use. The
// tree of the v2 API is in the file if the sender is Quorate, and in the message if
// it is etcd 3.5.
func (h Home) Import(ctx context.Context, snap *raftpb.Snapshot) error {
	fs, meta := h.Layout.FS, snap.GetMetadata()
	files, err := h.received(ids.Index(meta.GetIndex()))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("there is no received snapshot of entry %d in %s", meta.GetIndex(), h.Layout.Snap())
	}
	dir, file := h.Layout.NewStore(ids.Index(meta.GetIndex())), files[0]
	if err := h.checkReceived(ctx, file); err != nil {
		return err
	}
	if err := fs.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove remains of an earlier import: %w", err)
	}
	eng, err := h.OpenEngine(dir)
	if err != nil {
		return err
	}
	got, err := snapshot.Read(ctx, file, eng, snapshot.Options{FS: h.Layout.FS})
	if err == nil && got.ConsistentIndex != ids.Index(meta.GetIndex()) {
		err = fmt.Errorf("the file %s holds the state of entry %d, its message says %d", file, got.ConsistentIndex, meta.GetIndex())
	}
	if err == nil {
		b := eng.NewBatch()
		if err = RestoreV2(b, eng, got, snap.GetData()); err == nil {
			b.Set(ownerKey, h.owner())
			b.Set(installKey, binary.BigEndian.AppendUint64(nil, meta.GetIndex()))
			err = b.Commit()
		} else {
			b.Discard()
		}
	}
	if err == nil {
		err = eng.Flush(ctx)
	}
	if cerr := eng.Close(); err == nil {
		err = cerr
	}
	return err
}

// Exchange switches to the imported store and opens it.
func (h Home) Exchange(index ids.Index) (eng engine.Engine, dir string, err error) {
	dir = h.Layout.NewStore(index)
	if eng, err = h.OpenEngine(dir); err != nil {
		return nil, dir, err
	}
	if err := h.Layout.Use(dir); err != nil {
		eng.Close()
		return nil, dir, err
	}
	return eng, dir, nil
}

// ResetLog makes the log begin after an installed snapshot.
func (h Home) ResetLog(meta *raftpb.SnapshotMetadata) error {
	return h.Log.Reset(raftlog.SnapshotMark{Index: ids.Index(meta.GetIndex()), Term: ids.Term(meta.GetTerm()), ConfState: meta.GetConfState()})
}

// BeginLog makes the log begin after index, the state of which was imported from
// etcd. The entries before index need not reproduce that state: the cluster may have
// been restored from a snapshot file, etcd may have dropped the data of the v2 API,
// or the membership was repaired. A follower without this state is sent a snapshot.
func (h Home) BeginLog(index ids.Index, cs *raftpb.ConfState) error {
	if index == 0 {
		return nil
	}
	term, err := h.Log.Term(uint64(index))
	if err != nil {
		return fmt.Errorf("term of entry %d: %w", index, err)
	}
	return h.Log.SaveMark(raftlog.SnapshotMark{Index: index, Term: ids.Term(term), ConfState: cs, Alone: true})
}

// Truncate drops the log up to index. The caller must have flushed the store past
// index, and cs must be the configuration at index or later.
func (h Home) Truncate(index ids.Index, cs *raftpb.ConfState) error {
	term, err := h.Log.Term(uint64(index))
	if err != nil {
		return fmt.Errorf("term of entry %d: %w", index, err)
	}
	if err := h.Log.SaveMark(raftlog.SnapshotMark{Index: index, Term: ids.Term(term), ConfState: cs}); err != nil {
		return err
	}
	return h.Log.Compact(index)
}

// Describe returns the metadata of the snapshot that a follower would be sent now.
func (h Home) Describe(mach *apply.Machine) (*raftpb.Snapshot, error) {
	index := mach.Applied()
	term, err := h.Log.Term(uint64(index))
	if err != nil {
		return nil, fmt.Errorf("term of applied entry %d: %w", index, err)
	}
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(index)), Term: new(term), ConfState: mach.ConfState()}}, nil
}

// Retire removes the store that an installed snapshot has replaced, and all received
// files up to that index: the installed one, and those that raft did not use.
func (h Home) Retire(dir string, index ids.Index) error {
	fs := h.Layout.FS
	names, err := fs.List(h.Layout.Snap())
	errs := []error{err, fs.RemoveAll(dir)}
	newest := fmt.Sprintf("%016x", index)
	for _, name := range names {
		if strings.HasSuffix(name, receivedSuffix) && len(name) > len(newest) && name[:len(newest)] <= newest {
			errs = append(errs, fs.RemoveAll(fs.PathJoin(h.Layout.Snap(), name)))
		}
	}
	return errors.Join(errs...)
}

// RemoveRemains removes what an interrupted process has left: stores that are not in
// use, snapshots that were being received or written, and temporary files. Open calls
// it once the store in use is known to be good.
func (h Home) RemoveRemains(inUse string) {
	fs := h.Layout.FS
	remove := func(dir string, remains func(name string) bool) {
		names, err := fs.List(dir)
		if err != nil {
			h.Logger.Warn("failed to look for remains of a crash", zap.String("dir", dir), zap.Error(err))
		}
		for _, name := range names {
			if !remains(name) {
				continue
			}
			path := fs.PathJoin(dir, name)
			if err := fs.RemoveAll(path); err != nil {
				h.Logger.Warn("failed to remove remains of a crash", zap.String("path", path), zap.Error(err))
			}
		}
	}
	remove(h.Layout.Snap(), isRemains)
	remove(h.Layout.Member(), func(name string) bool {
		return strings.HasSuffix(name, durable.TempSuffix) || // of WriteNote
			name != fs.PathBase(inUse) && (name == strings.TrimSuffix(StorePrefix, "-") || strings.HasPrefix(name, StorePrefix))
	})
}

// isRemains reports whether a file of this name below Snap is useless once the member
// is stopped: it was being written, or was received and not installed.
func isRemains(name string) bool {
	return strings.HasSuffix(name, receivedSuffix) || strings.HasSuffix(name, partSuffix) || snapshot.IsTemp(name) && name != guardName
}
