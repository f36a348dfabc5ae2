package datadir

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/clock"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// exportName is the name below Snap of etcd's new store until all else is ready. It
// must not match what a start of etcd or of Quorate removes.
const exportName = "export.db"

// Leave converts a directory of Quorate, of a stopped member, into one on which etcd
// of the release target starts as the same member: it writes etcd's store and .snap
// file, adds a mark to the log at that index, and moves our store aside to the
// returned path. A second call finishes what a crash has interrupted.
func Leave(ctx context.Context, l Layout, target membership.Version, o Options) (aside string, err error) {
	o = o.withDefaults()
	p, err := l.readPointer()
	if err != nil {
		return "", err
	}
	kind, err := l.Kind()
	if err != nil {
		return "", err
	}
	switch {
	case p.task == leave:
		return finishLeave(l, p, o.Logger)
	case p.task == putAside:
		return "", l.errTaking()
	case kind == Both:
		return "", l.errUndecided()
	case p.task == left && kind == Etcds: // the files are there; only the store has to be moved
	case kind == Etcds:
		return "", l.errEtcds()
	}
	if p.task != left || kind != Etcds {
		if err := prepareLeave(ctx, l, target, o); err != nil {
			return "", err
		}
	}
	if p.name, err = l.freeName("store.quorate"); err != nil {
		return "", err
	}
	p.task = leave
	if err := l.writePointer(p); err != nil {
		return "", err
	}
	return finishLeave(l, p, o.Logger)
}

// LeaveBeside writes etcd's files as Leave does and keeps our store in use next to
// them, so that either program can start next: Begin continues with our store unless
// etcd has run, and imports etcd's files if it has. An error, a crash or the end of
// ctx leaves the directory as it was, except for files that the next start removes.
func LeaveBeside(ctx context.Context, l Layout, target membership.Version, o Options) error {
	o = o.withDefaults()
	p, err := l.readPointer()
	if err != nil {
		return err
	}
	kind, err := l.Kind()
	switch {
	case err != nil:
		return err
	case p.task == putAside:
		return l.errTaking()
	case p.task == leave:
		return l.errLeaving()
	case kind == Both:
		return l.errUndecided()
	case kind != Ours:
		return fmt.Errorf("there is no store in %s", l.Member())
	}
	if err := prepareLeave(ctx, l, target, o); err != nil {
		return err
	}
	export := l.FS.PathJoin(l.Snap(), exportName)
	p.task = left
	if p.name, err = look(l.FS, export); err != nil {
		return err
	}
	if err := l.writePointer(p); err != nil { // first, or there would be two stores and nothing to tell which one is current
		return err
	}
	if err := l.unguard(); err != nil {
		return fmt.Errorf("make room for the store of etcd: %w", err)
	}
	if err := durable.Rename(l.FS, export, l.DB()); err != nil {
		return fmt.Errorf("put the store of etcd in place: %w", err)
	}
	o.Logger.Info("etcd may be started on the directory, or this program again", zap.String("data-dir", l.DataDir),
		zap.String("release", fmt.Sprintf("%d.%d", target.Major, target.Minor)))
	return nil
}

// errEtcds says that there is nothing to hand over, and names what an unfinished start
// of Quorate has left next to etcd's files.
func (l Layout) errEtcds() error {
	err := fmt.Errorf("%s is a directory of etcd already", l.DataDir)
	names, lerr := l.FS.List(l.Member())
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	var begun []string
	for _, name := range names {
		if strings.HasPrefix(name, StorePrefix) {
			begun = append(begun, l.FS.PathJoin(l.Member(), name))
		}
	}
	if len(begun) > 0 {
		err = fmt.Errorf("%w; a take-over that was not finished has left %s, which may be removed", err, strings.Join(begun, ", "))
	}
	return err
}

func (l Layout) errTaking() error {
	return fmt.Errorf("%s is being taken over from etcd: start the server on it once, which finishes it", l.DataDir)
}

// look returns a fingerprint that changes when etcd opens the database: etcd then
// begins a transaction, which writes one of the first two pages.
func look(fs vfs.FS, path string) (string, error) {
	f, err := fs.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.LimitReader(f, 2*int64(os.Getpagesize()))); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return fmt.Sprintf("%x-%08x", st.Size(), sum.Sum32()), nil
}

// untouched reports whether etcd has not opened the database that was left for it.
// What it may have written to the log is valid for our store as well.
func (l Layout) untouched(p pointer) (bool, error) {
	now, err := look(l.FS, l.DB())
	return now == p.name, err
}

// removeLeft removes the files that were left for etcd, including those of an
// unfinished attempt, from a directory whose store stays in use.
func removeLeft(l Layout, p pointer) error {
	names, err := l.FS.List(l.Snap())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := l.hasDB()
	if err != nil {
		return err
	}
	var remove []string
	for _, name := range names {
		if _, _, ok := snapshot.ParseSnapName(name); ok || name == exportName || name == "db" && db && p.task == left {
			remove = append(remove, name)
		}
	}
	if len(remove) > 0 {
		if err := durable.Remove(l.FS, l.Snap(), remove...); err != nil {
			return err
		}
	}
	if p.task != left {
		return nil
	}
	return l.writePointer(pointer{store: p.store})
}

// prepareLeave writes etcd's files next to ours.
func prepareLeave(ctx context.Context, l Layout, target membership.Version, o Options) (err error) {
	log, err := raftlog.Open(l.FS, l.WAL(), raftlog.Options{KeepSegments: -1, NoBackground: true, Logger: o.Logger})
	if err != nil {
		return fmt.Errorf("open raft log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	eng, err := l.openOurs(o.opener(l))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	applied, err := checkPosition(l, eng, log)
	if err != nil {
		return err
	}
	proved, err := prove(log, eng, applied, o)
	if err != nil {
		return err
	}
	state, err := withVersions(l, eng, log, applied, proved.commit, target, o)
	if err != nil {
		return err
	}
	meta, data, err := Describe(state, o.Version, target.Less(membership.FirstWithoutV2))
	if err != nil {
		return err
	}
	if err := checkV2(state, target, o); err != nil {
		return err
	}
	if err := checkEntries(l, log, applied+1, target); err != nil {
		return err
	}
	if err := durable.MkdirAll(l.FS, l.Snap()); err != nil {
		return err
	}
	if err := removeMatching(l.FS, l.Snap(), func(name string) bool { return isRemains(name) || name == exportName }); err != nil {
		return err
	}
	export := l.FS.PathJoin(l.Snap(), exportName)
	start := clock.Now()
	o.Logger.Info("writing the store of etcd", zap.String("to", export), zap.Uint64("applied-index", meta.GetIndex()))
	written := &counted{Reader: state}
	stop := written.report(o)
	_, err = snapshot.Export(ctx, written, export, snapshot.Options{FS: l.FS, WithoutV2: true})
	if stop(); err != nil {
		return err
	}
	if err := proved.record(log, o); err != nil {
		return err
	}
	if meta.GetIndex() > 0 {
		mark := raftlog.SnapshotMark{Index: ids.Index(meta.GetIndex()), Term: ids.Term(meta.GetTerm()), ConfState: meta.GetConfState()}
		if err := log.SaveMark(mark); err != nil {
			return fmt.Errorf("mark the raft log: %w", err)
		}
		if err := snapshot.SaveSnap(l.Snap(), &raftpb.Snapshot{Data: data, Metadata: meta}, snapshot.Options{FS: l.FS}); err != nil {
			return err
		}
	}
	o.Logger.Info("wrote the store of etcd", zap.String("to", export), zap.Duration("took", clock.Since(start)))
	return nil
}

// counted counts the pairs that are read.
type counted struct {
	engine.Reader
	pairs atomic.Int64
}

func (c *counted) NewIter(lower, upper []byte) (engine.Iterator, error) {
	it, err := c.Reader.NewIter(lower, upper)
	return &countedIter{it, c}, err
}

type countedIter struct {
	engine.Iterator
	c *counted
}

func (i *countedIter) Next() bool {
	i.c.pairs.Add(1)
	return i.Iterator.Next()
}

// report logs the progress every two seconds until stop is called.
func (c *counted) report(o Options) (stop func()) {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := clock.NewTicker(clock.System, 2*time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				n := c.pairs.Load()
				o.Logger.Info("writing the store of etcd", zap.Int64("keys", n))
				if o.Working != nil {
					o.Working(fmt.Sprintf("writing the store of etcd: %d keys", n))
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

// checkPosition refuses a store from which the log does not go on, and returns the index
// that it has applied.
func checkPosition(l Layout, eng engine.Reader, log *raftlog.Log) (ids.Index, error) {
	index, term, err := apply.Position(eng)
	if err != nil {
		return 0, err
	}
	first, err := log.FirstIndex()
	if err != nil {
		return 0, err
	}
	if index+1 < ids.Index(first) || index < log.Mark().Index {
		return 0, fmt.Errorf("the store in %s has applied entry %d, but the raft log in %s begins at entry %d: start the member once, then stop it",
			l.Member(), index, l.WAL(), first)
	}
	if in, err := log.Term(uint64(index)); err != nil || ids.Term(in) != term {
		return 0, fmt.Errorf("the store in %s has applied entry %d of term %d, which the raft log in %s does not hold: start the member once, then stop it",
			l.Member(), index, term, l.WAL())
	}
	return index, nil
}

// checkEntries refuses a log that the target cannot read: it may hold v2 requests in
// the form of 3.5, or requests that carry one. Both kinds are behind the exported
// state if the member was started and stopped before.
func checkEntries(l Layout, log *raftlog.Log, from ids.Index, target membership.Version) error {
	return eachEntry(log, from, func(e *raftpb.Entry) error {
		if e.GetType() == raftpb.EntryNormal && !readableBy(e.Data, target) {
			return fmt.Errorf("entry %d of the raft log in %s is a v2 request in a form which etcd %d.%d cannot read: start the member once, then stop it",
				e.GetIndex(), l.WAL(), target.Major, target.Minor)
		}
		return nil
	})
}

// readableBy reports whether etcd of a release can decode an entry, as far as v2
// requests are concerned: 3.5 decodes all of them, 3.6 those about member attributes,
// 3.7 none.
func readableBy(data []byte, target membership.Version) bool {
	is, write, carried := v2request.Look(data)
	switch {
	case target.Less(membership.FirstWithoutV2):
		return !carried
	case target.Less(membership.FirstPureV3):
		return !write || carried
	}
	return !is || carried
}

// finishLeave runs the steps after which the directory is etcd's. Each is idempotent.
func finishLeave(l Layout, p pointer, lg *zap.Logger) (aside string, err error) {
	fs := l.FS
	if err := l.unguard(); err != nil {
		return "", fmt.Errorf("make room for the store of etcd: %w", err)
	}
	if err := renameIfThere(fs, fs.PathJoin(l.Snap(), exportName), l.DB()); err != nil {
		return "", fmt.Errorf("put the store of etcd in place: %w", err)
	}
	aside = fs.PathJoin(l.Member(), p.name)
	if err := renameIfThere(fs, fs.PathJoin(l.Member(), p.store), aside); err != nil {
		return "", fmt.Errorf("put the store aside: %w", err)
	}
	// What an interrupted snapshot installation has left, also the first store, which an
	// installed one has replaced, and temporary files.
	remains := func(name string) bool {
		return name == fs.PathBase(l.firstStore()) || strings.HasPrefix(name, StorePrefix) || strings.HasSuffix(name, durable.TempSuffix)
	}
	if err := removeMatching(fs, l.Member(), remains); err != nil {
		return "", err
	}
	// Without the file STORE, the first store would count as the one in use.
	if err := durable.SyncDir(fs, l.Member()); err != nil {
		return "", err
	}
	if err := durable.Remove(fs, l.Member(), fs.PathBase(l.Owner()), fs.PathBase(l.pointerFile())); err != nil {
		return "", err
	}
	lg.Info("the directory is etcd's; our store is kept and may be removed", zap.String("data-dir", l.DataDir), zap.String("kept-in", aside))
	return aside, nil
}

// Describe reads from a state of the store what raft and members of etcd need to
// know about it: its position, and the membership as the JSON of the v2 store. With
// keys, the JSON includes the keys of the v2 API, which members of etcd 3.5 need and
// on which later ones do not start.
func Describe(state engine.Reader, own membership.Version, keys bool) (*raftpb.SnapshotMetadata, []byte, error) {
	index, term, err := apply.Position(state)
	if err != nil {
		return nil, nil, err
	}
	c := membership.New(membership.Options{ServerVersion: own, Aside: true})
	if err := c.Load(state); err != nil {
		return nil, nil, err
	}
	cs := &raftpb.ConfState{}
	var members []snapshot.Member
	for _, x := range c.Members() {
		if x.IsLearner {
			cs.Learners = append(cs.Learners, uint64(x.ID))
		} else {
			cs.Voters = append(cs.Voters, uint64(x.ID))
		}
		members = append(members, snapshot.Member{ID: x.ID, Name: x.Name, PeerURLs: x.PeerURLs, ClientURLs: x.ClientURLs, IsLearner: x.IsLearner})
	}
	version := ""
	if v := c.Version(); v.Decided() {
		version = v.String()
	}
	var tree engine.Reader
	if keys {
		tree = state
	}
	data, err := snapshot.V2Store(members, c.RemovedIDs(), version, tree)
	if err != nil {
		return nil, nil, err
	}
	return &raftpb.SnapshotMetadata{Index: new(uint64(index)), Term: new(uint64(term)), ConfState: cs}, data, nil
}
