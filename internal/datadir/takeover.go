package datadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/descriptors"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/engine/pebble"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/snapshot"
)

// Options of the migrations.
type Options struct {
	Version membership.Version // of this program; newer files are refused
	Logger  *zap.Logger        // nil: none
	// BatchBytes is passed to package snapshot; 0 is its default.
	BatchBytes int
	// DropV2 allows a migration to a release of etcd that does not keep data of the v2
	// API although there is some.
	DropV2 bool
	// Working, unless nil, is called every two seconds with the progress.
	Working func(status string)
	// OpenEngine opens the stores that are filled or converted; nil: Pebble stores. The
	// simulator has its own.
	OpenEngine func(dir string) (engine.Engine, error)
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return o
}

// opener returns the function that opens the stores of a directory.
func (o Options) opener(l Layout) func(dir string) (engine.Engine, error) {
	if o.OpenEngine != nil {
		return o.OpenEngine
	}
	return func(dir string) (engine.Engine, error) { return pebble.Open(dir, pebbleOptions(l, o.Logger)) }
}

// Takeover is a directory of etcd that is being converted. Dir holds a complete store
// with the state of etcd's; nothing of etcd's has been changed. The log is used as it
// is.
type Takeover struct {
	Dir   string    // the new store, closed
	Index ids.Index // of the newest entry that it holds

	l        Layout
	lg       *zap.Logger
	open     func(dir string) (engine.Engine, error)
	lock     io.Closer // etcd's lock on its database
	hadOwner bool
}

// Begin imports the store of etcd in a directory up to the point of no return: the
// caller opens the store at Dir and then calls Finish, or Abandon if it cannot use it.
// Begin returns nil if there is no store of etcd to import. If a crash interrupted
// Finish after its first step, Begin finishes it. A directory that cannot be
// converted is refused unchanged.
func Begin(ctx context.Context, l Layout, o Options) (_ *Takeover, err error) {
	o = o.withDefaults()
	p, err := l.readPointer()
	if err != nil {
		return nil, err
	}
	kind, err := l.Kind()
	if err != nil {
		return nil, err
	}
	switch {
	case p.task == leave:
		return nil, l.errLeaving()
	case p.task == putAside:
		return nil, finishPutAside(l, p, o.Logger)
	case kind == Both:
		return nil, goOn(ctx, l, p, o)
	case kind == Ours:
		return nil, removeLeft(l, p)
	case kind != Etcds:
		return nil, nil
	}
	t := &Takeover{l: l, lg: o.Logger, open: o.opener(l)}
	if t.hadOwner, err = exists(l.FS, l.Owner()); err != nil {
		return nil, err
	}
	db, err := l.FS.Open(l.DB())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", l.DB(), err)
	}
	t.lock = db
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Abandon(err))
		}
	}()
	if err := lockFile(db); err != nil {
		return nil, fmt.Errorf("lock %s: %w: is etcd still running on it?", l.DB(), err)
	}
	if p.task == left {
		if untouched, err := l.untouched(p); err != nil {
			return nil, err
		} else if untouched {
			o.Logger.Info("etcd has not started on the files that were left for it; going on with the store", zap.String("store", p.store))
			return nil, errors.Join(removeLeft(l, p), t.unlock())
		}
		o.Logger.Info("etcd has run on the files that were left for it; converting them again", zap.String("data-dir", l.DataDir))
	}
	found, err := examine(ctx, l, o.Version, o.Logger)
	if err != nil {
		return nil, fmt.Errorf("the directory of etcd cannot be taken over, nothing has been changed: %w", err)
	}
	t.Index = found.meta.ConsistentIndex
	if t.Dir = l.NewStore(t.Index); p.task == left && l.FS.PathBase(t.Dir) == p.store {
		t.Dir += ".1" // ours has the same position, and stays until the new one is complete
	}
	// Copies of what etcd had before it ran again.
	older := func(name string) bool {
		return strings.HasPrefix(name, StorePrefix) && name != l.FS.PathBase(t.Dir) && name != p.store
	}
	if err := removeMatching(l.FS, l.Member(), older); err != nil {
		return nil, fmt.Errorf("remove remains of an earlier attempt: %w", err)
	}
	if err := t.fill(ctx, found, o); err != nil {
		return nil, fmt.Errorf("the directory of etcd cannot be taken over, nothing has been changed: %w", err)
	}
	return t, nil
}

// fill copies the store of etcd into a new one at t.Dir.
func (t *Takeover) fill(ctx context.Context, found *etcds, o Options) error {
	fs, start := t.l.FS, clock.Now()
	size := int64(0)
	if st, err := fs.Stat(found.db); err == nil {
		size = st.Size()
	}
	t.lg.Info("taking over the store of etcd", zap.String("from", found.db), zap.String("into", t.Dir),
		zap.String("release", found.release()), zap.Int64("bytes", size), zap.Uint64("applied-index", uint64(t.Index)))
	var pairs, resumed int64
	report := reporter(t.lg, found.db, o.Working)
	eng, meta, err := t.copy(ctx, found, snapshot.Options{FS: fs, Resume: true, BatchBytes: o.BatchBytes, Progress: func(p snapshot.Progress) {
		pairs, resumed = p.Pairs, p.Resumed
		report(p)
	}})
	if eng == nil {
		return err
	}
	if err == nil && meta.ConsistentIndex != t.Index {
		err = fmt.Errorf("%s has changed while it was read", found.db)
	}
	if err == nil {
		b := eng.NewBatch()
		if err = found.repairMembership(eng, b, o.Version, t.lg); err == nil {
			err = b.Commit()
		} else {
			b.Discard()
		}
	}
	if err == nil {
		err = found.fillV2(ctx, t.l, eng, o, t.lg)
	}
	if err == nil {
		err = eng.Flush(ctx)
	}
	if err = errors.Join(err, eng.Close()); err != nil {
		return err
	}
	if err := durable.SyncDir(fs, t.l.Member()); err != nil {
		return err
	}
	t.lg.Info("copied the store of etcd", zap.String("into", t.Dir), zap.Uint64("percent", 100), zap.Int64("keys", pairs),
		zap.Int64("keys-from-earlier-attempts", resumed), zap.Duration("took", clock.Since(start)))
	return nil
}

// copy copies the database into the store at t.Dir and returns the open store, nil if
// it cannot be opened. It resumes from what an earlier attempt has left there if that
// was a copy of the same database, and deletes it otherwise.
func (t *Takeover) copy(ctx context.Context, found *etcds, o snapshot.Options) (engine.Engine, snapshot.Meta, error) {
	for again := false; ; again = true {
		eng, err := t.open(t.Dir)
		var meta snapshot.Meta
		if err == nil {
			if meta, err = snapshot.Read(ctx, found.db, eng, o); err == nil || again || ctx.Err() != nil || !leftBehind(err) {
				return eng, meta, err
			}
			err = eng.Close()
		} else if again || ctx.Err() != nil {
			return nil, meta, err
		}
		t.lg.Info("starting over: what an earlier attempt has left cannot be used", zap.String("path", t.Dir), zap.Error(err))
		if err := t.l.FS.RemoveAll(t.Dir); err != nil {
			return nil, meta, fmt.Errorf("remove remains of an earlier attempt: %w", err)
		}
	}
}

// leftBehind reports whether a copy failed because of what an earlier attempt has left.
func leftBehind(err error) bool {
	var damaged *engine.CorruptionError
	return errors.Is(err, snapshot.ErrNotEmpty) || errors.Is(err, snapshot.ErrOtherFile) || errors.As(err, &damaged)
}

// Finish switches to the new store and moves etcd's files aside. After its first step
// the conversion can only be finished, which Begin does after a crash.
func (t *Takeover) Finish() error {
	if p, err := t.l.readPointer(); err == nil && p.task == putAside { // an earlier call found no room
		if err := finishPutAside(t.l, p, t.lg); err != nil {
			return err
		}
		return t.unlock()
	}
	aside, err := t.l.freeName(fmt.Sprintf("snap.etcd-%016x", t.Index))
	if err != nil {
		return err
	}
	p := pointer{store: t.l.FS.PathBase(t.Dir), task: putAside, name: aside}
	if err := t.l.writePointer(p); err != nil {
		return err
	}
	if err := finishPutAside(t.l, p, t.lg); err != nil {
		return err
	}
	return t.unlock()
}

func finishPutAside(l Layout, p pointer, lg *zap.Logger) error {
	aside := l.FS.PathJoin(l.Member(), p.name)
	there, err := l.hasDB()
	if err == nil && there {
		err = durable.Rename(l.FS, l.Snap(), aside)
	}
	if err != nil {
		return fmt.Errorf("put the files of etcd aside: %w", err)
	}
	if err := durable.MkdirAll(l.FS, l.Snap()); err != nil {
		return err
	}
	if err := l.writePointer(pointer{store: p.store}); err != nil {
		return err
	}
	lg.Info("the store is in use; the files of etcd are kept and may be removed", zap.String("kept-in", aside),
		zap.String("store", l.FS.PathJoin(l.Member(), p.store)))
	return nil
}

// Abandon removes what Begin has made, because of an error. If the start was
// cancelled, the copy stays and the next start resumes it. It does nothing after
// Finish.
func (t *Takeover) Abandon(because error) error {
	if t.lock == nil {
		return nil
	}
	var errs []error
	if p, err := t.l.readPointer(); err != nil || p.task == putAside {
		return t.unlock() // Finish has begun
	}
	if t.Dir != "" && !errors.Is(because, context.Canceled) {
		errs = append(errs, t.l.FS.RemoveAll(t.Dir))
	}
	if !t.hadOwner {
		errs = append(errs, durable.Remove(t.l.FS, t.l.Member(), t.l.FS.PathBase(t.l.Owner())))
	}
	return errors.Join(append(errs, t.unlock())...)
}

func (t *Takeover) unlock() error {
	err := t.lock.Close()
	t.lock = nil
	return err
}

// pebbleOptions are the options of stores that are opened to convert or inspect them.
func pebbleOptions(l Layout, lg *zap.Logger) pebble.Options {
	return pebble.Options{FS: l.FS, Logger: lg,
		OnBackgroundError: func(err error) { lg.Error("store", zap.Error(err)) },
		OnSpace: func(lack error) {
			switch {
			case descriptors.Exhausted(lack):
				lg.Error("too many open files: waiting until some are closed; "+descriptors.WayOut, zap.String("dir", l.Member()))
			case lack != nil:
				lg.Error("no room on the disk: waiting until there is", zap.String("dir", l.Member()))
			default:
				lg.Info("the store can be written again", zap.String("dir", l.Member()))
			}
		}}
}

// OpenStore opens the store in use, which must exist and be of Quorate.
func OpenStore(l Layout, lg *zap.Logger) (engine.Engine, error) {
	return openStore(l, pebbleOptions(l, lg))
}

// ReadStore is OpenStore for read-only access.
func ReadStore(l Layout, lg *zap.Logger) (engine.Engine, error) {
	o := pebbleOptions(l, lg)
	o.ReadOnly = true
	return openStore(l, o)
}

func openStore(l Layout, o pebble.Options) (engine.Engine, error) {
	return l.openOurs(func(dir string) (engine.Engine, error) { return pebble.Open(dir, o) })
}

// openOurs opens the store in use unless the directory is not, or not surely, of Quorate.
func (l Layout) openOurs(open func(dir string) (engine.Engine, error)) (engine.Engine, error) {
	kind, err := l.Kind()
	if err != nil {
		return nil, err
	}
	switch kind {
	case Etcds:
		return nil, fmt.Errorf("%s is a directory of etcd: start this program's etcd on it, which takes it over, or use etcd's own tools", l.DataDir)
	case Both:
		return nil, l.errUndecided()
	case Moving:
		return nil, fmt.Errorf("a move of %s to or from etcd was interrupted: start the server, or run 'etcdutl migrate --to-etcd', again", l.DataDir)
	case Empty:
		return nil, fmt.Errorf("there is no store in %s", l.Member())
	}
	dir, err := l.Store()
	if err != nil {
		return nil, err
	}
	eng, err := open(dir)
	if errors.Is(err, pebble.ErrInUse) {
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return eng, err
}
