// Package pebble is the production engine: a log-structured store on Pebble.
//
// In: batches and reads of package engine. Out: files below one directory.
// Always true: Pebble's own log is disabled, so what survives a crash is a prefix of
// the batches, at least up to the last Flush; the checksum of every block is verified
// when it is read; memory is bounded by the cache, which includes the memtables. A
// directory is used by one process at a time.
//
// The shape of the data determines the options. Records arrive in revision order, so
// flushed tables do not overlap, provided that they hold nothing but records
// (splitTables), and many move down the levels without being rewritten: a table keeps
// the compression with which it was flushed, hence one fast compression on all levels.
// Many records at once are read past the cache (finder). Point reads request existing
// keys, so bloom filters would cost ten bits per record and save nothing.
package pebble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"quorate/internal/clock"
	"quorate/internal/descriptors"
	"quorate/internal/engine"
)

// ErrInUse is returned by Open when another process, or another engine of this
// process, has the directory open.
var ErrInUse = errors.New("pebble: directory is in use")

// ErrFailed marks the error of a flush or compaction that failed for a reason other
// than lack of space or descriptors. Committed data stays readable, in memory, but the engine may
// never be able to write it to disk: the member must stop. What was flushed before is
// safe.
var ErrFailed = errors.New("pebble: engine cannot write")

// ErrFatal marks an error after which the engine does nothing more: a write to its
// manifest failed, so it does not know what is durable. The member must stop; what was
// flushed before is safe.
var ErrFatal = errors.New("pebble: engine has stopped")

// Options of an engine; zero values are defaults.
type Options struct {
	FS            vfs.FS // nil is the file system of the machine
	CacheBytes    int64  // blocks and memtables together, 0 is 64 MiB
	MemTableBytes int64  // one memtable, 0 is 16 MiB
	Logger        *zap.Logger
	// ReadOnly opens an existing engine and changes nothing on disk.
	ReadOnly bool
	// OnBackgroundError is called with the errors of failed flushes and compactions, of
	// a full disk or a lack of descriptors, for which writes wait, of damage that a reader has found, and errors
	// that wrap ErrFatal. It is called from any goroutine and must not call the engine.
	// If it is nil, errors are logged.
	OnBackgroundError func(error)
	// OnFailure is called once when the engine cannot continue, with an error that wraps
	// ErrFailed or ErrFatal. It is called like OnBackgroundError. If it is nil, a fatal
	// error exits the process unless OnBackgroundError is set.
	OnFailure func(error)
	// GiveUp, when closed, ends waits for disk space: the waiting writes fail.
	GiveUp <-chan struct{}
	// OnSpace is called with the error when a write found no room on the disk, or no file
	// descriptor, and with nil when one found it again. In between flushes wait, and batches
	// as soon as the memtables are full. It is called like OnBackgroundError.
	OnSpace func(lack error)
	// Files is how many tables are kept open. Zero is what the process may have.
	Files descriptors.Store
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = 64 << 20
	}
	if o.MemTableBytes <= 0 {
		o.MemTableBytes = 16 << 20
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.OnSpace == nil {
		o.OnSpace = func(error) {}
	}
	if o.Files == (descriptors.Store{}) {
		o.Files = descriptors.ForStore()
	}
	return o
}

// format is fixed, so that a release of this program, and not an update of Pebble,
// decides when files become unreadable for earlier releases.
const format = pebble.FormatTableFormatV6

// store implements engine.Engine.
type store struct {
	dir  string
	o    Options
	db   *pebble.DB
	lock *pebble.Lock
	disk *patientFS

	// uses counts the calls, iterators and snapshots that use the database. Close waits
	// for them, as Pebble panics if a reader comes too late.
	uses    atomic.Int64
	closed  atomic.Bool
	once    sync.Once
	unused  chan struct{} // closed when the engine is closed and no longer in use
	closing chan struct{} // ends waits for disk space, compactions and iterations

	fatalOnce sync.Once
	fatal     chan struct{} // closed when the engine has stopped
	failOnce  sync.Once
	failed    chan struct{} // closed when failure is set
	failure   error

	direct tableFiles // what finders read

	flushTurn chan struct{} // empty while a flush is being started, or waits for another one

	// stale is set when files have changed since size was computed.
	stale     atomic.Bool
	mem       memtables
	sizeMu    sync.Mutex
	size      engine.Size
	measuring chan struct{} // closed when size is computed; nil if nobody computes it
}

// Open opens the engine in dir, which is created if it does not exist. Errors:
// ErrInUse, engine.CorruptionError, or those of the file system.
func Open(dir string, o Options) (engine.Engine, error) {
	o = o.withDefaults()
	s := &store{dir: dir, o: o, unused: make(chan struct{}), closing: make(chan struct{}),
		fatal: make(chan struct{}), failed: make(chan struct{}), flushTurn: make(chan struct{}, 1), mem: newMemtables(o.MemTableBytes)}
	s.disk = &patientFS{FS: o.FS, closing: s.closing, giveUp: o.GiveUp, report: s.report, onSpace: o.OnSpace, pace: newPacer(s.mem.behind)}
	s.flushTurn <- struct{}{}
	s.direct.s = s
	s.stale.Store(true)
	if !o.ReadOnly {
		if err := s.disk.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("pebble: make %s: %w", dir, err)
		}
	}
	var err error
	if s.lock, err = pebble.LockDirectory(dir, s.disk); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInUse, dir, err)
	}
	if err := checkManifest(s.disk, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("pebble: open %s: %w", dir, err), s.lock.Close())
	}
	cache := pebble.NewCache(o.CacheBytes)
	defer cache.Unref()
	opts := s.options(cache)
	if err := checkOptions(s.disk, dir, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("pebble: open %s: %w", dir, err), s.lock.Close())
	}
	if s.db, err = s.openOrFail(dir, opts); err != nil {
		err = s.wrap(err)
		return nil, errors.Join(fmt.Errorf("pebble: open %s: %w", dir, err), s.lock.Close())
	}
	s.disk.pace.waiting.Add(s.db.Metrics().Levels[0].TablesCount)
	return s, nil
}

// openOrFail is open that returns when the engine has failed. Pebble would wait
// forever for a flush that it retries. Its resources are then not released.
func (s *store) openOrFail(dir string, o *pebble.Options) (*pebble.DB, error) {
	type opened struct {
		db  *pebble.DB
		err error
	}
	done := make(chan opened, 1)
	go func() {
		db, err := open(dir, o)
		done <- opened{db, err}
	}()
	select {
	case r := <-done:
		return r.db, r.err
	case <-s.failed:
		go func() { // it may still open; without Close it would try the damaged file again and again
			if r := <-done; r.db != nil {
				r.db.Close()
			}
		}()
		return nil, s.failure
	}
}

// open turns the panics of Pebble on some damaged files into errors.
func open(dir string, o *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(runtime.Error); ok {
				err = pebble.ErrCorruption
				return
			}
			panic(r)
		}
	}()
	o.FileCache = pebble.NewFileCache(min(runtime.GOMAXPROCS(0), o.MaxOpenFiles), o.MaxOpenFiles)
	defer o.FileCache.Unref() // the database has a reference
	return pebble.Open(dir, o)
}

func (s *store) options(cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		Cache:                       cache,
		DisableWAL:                  true,
		ReadOnly:                    s.o.ReadOnly,
		FS:                          s.disk,
		Lock:                        s.lock,
		FormatMajorVersion:          format,
		Logger:                      logger{s},
		MemTableSize:                uint64(s.o.MemTableBytes),
		MemTableStopWritesThreshold: 3,
		// With two levels of waiting tables instead of four a cold read looks into fewer
		// tables; moving them down is cheap, see above.
		L0CompactionThreshold: 2,
		L0StopWritesThreshold: 100,
		LBaseMaxBytes:         64 << 20,
		MaxOpenFiles:          s.o.Files.Cached,
		MaxManifestFileSize:   4 << 20,
		CompactionConcurrencyRange: func() (int, int) {
			return 1, max(1, runtime.GOMAXPROCS(0)/2)
		},
	}
	// A flush writes its records into one table: several would be compacted together
	// instead of being moved.
	o.TargetFileSizes[0], o.TargetFileSizes[1] = 32<<20, 16<<20
	for i := range o.Levels {
		o.Levels[i].BlockSize = 8 << 10
		o.Levels[i].IndexBlockSize = 64 << 10
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	o.Experimental.SpanPolicyFunc = splitTables
	rare := s.o.Logger.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(c, time.Minute, 1, 0)
	}))
	stale := func() {
		s.stale.Store(true)
		s.direct.fresh.Store(false)
	}
	o.EventListener = &pebble.EventListener{
		BackgroundError: func(err error) { s.backgroundError(s.wrap(err)) },
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			s.report(&engine.CorruptionError{File: i.Path, Err: i.Details})
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			rare.Warn("the store is written faster than its disk takes it: writes wait", zap.String("dir", s.dir), zap.String("reason", i.Reason))
		},
		FlushBegin: s.mem.flushBegun,
		FlushEnd: func(i pebble.FlushInfo) {
			s.mem.flushEnded(i)
			s.disk.pace.flushed(i)
			stale()
		},
		CompactionEnd: func(i pebble.CompactionInfo) {
			s.disk.pace.compacted(i)
			stale()
		},
		TableDeleted: func(i pebble.TableDeleteInfo) {
			s.direct.deleted(uint64(i.FileNum))
			stale()
		},
	}
	return o
}

// splitTables makes tables end where the records begin and end. What every batch writes
// beside its records would otherwise stretch each table over all later records, so that
// none could move down the levels without being rewritten, and a reader of records would
// not know which table has which.
func splitTables(start []byte) (p pebble.SpanPolicy, end []byte, err error) {
	for _, border := range [][]byte{{byte(engine.Key)}, {byte(engine.Key) + 1}} {
		if bytes.Compare(start, border) < 0 {
			return p, border, nil
		}
	}
	return p, nil, nil
}

// report passes a background error to the owner.
func (s *store) report(err error) {
	if s.o.OnBackgroundError != nil {
		s.o.OnBackgroundError(err)
		return
	}
	if errors.Is(err, ErrFatal) && s.o.OnFailure == nil {
		s.o.Logger.Fatal("storage engine has stopped", zap.Error(err))
	}
	s.o.Logger.Error("storage engine", zap.Error(err))
}

// backgroundError classifies the error of a flush or compaction. Pebble retries after
// any error; that makes sense only for lack of space or descriptors.
func (s *store) backgroundError(err error) {
	if s.closed.Load() || errors.Is(err, engine.ErrClosed) {
		return // interrupted by Close, or because the owner gives up
	}
	s.disk.failed(err)
	if lacking(err) {
		s.report(err)
		return
	}
	s.fail(fmt.Errorf("%w: %w", ErrFailed, err))
}

// fail notifies the owner, once, that the engine cannot continue.
func (s *store) fail(err error) {
	s.failOnce.Do(func() {
		s.failure = err
		close(s.failed)
		s.report(err)
		if s.o.OnFailure != nil {
			s.o.OnFailure(err)
		}
	})
}

// die does not return: its caller inside Pebble cannot continue.
func (s *store) die(err error) {
	s.fatalOnce.Do(func() {
		close(s.fatal)
		if err = fmt.Errorf("%w: %w", ErrFatal, err); s.isFailed() {
			s.report(err) // the owner has been notified already
		} else {
			s.fail(err)
		}
	})
	runtime.Goexit()
}

var fileName = regexp.MustCompile(`\d{6,}\.[a-z]+|MANIFEST-\d+|OPTIONS-\d+|\d{6,}\b`)

// wrap translates Pebble's errors.
func (s *store) wrap(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pebble.ErrNotFound):
		return engine.ErrNotFound
	case errors.Is(err, pebble.ErrClosed):
		return engine.ErrClosed
	case pebble.IsCorruptionError(err):
		file := s.dir
		if i := pebble.ExtractDataCorruptionInfo(err); i != nil {
			file = i.Path
		} else if name := fileName.FindString(err.Error()); name != "" {
			file = s.o.FS.PathJoin(s.dir, name)
		}
		return &engine.CorruptionError{File: file, Err: err}
	}
	return err
}

// use keeps the database open until done is called. It returns false if the engine is
// being closed.
func (s *store) use() bool {
	s.uses.Add(1)
	if s.closed.Load() {
		s.done()
		return false
	}
	return true
}

func (s *store) done() {
	if s.uses.Add(-1) == 0 && s.closed.Load() {
		s.once.Do(func() { close(s.unused) })
	}
}

// Get implements engine.Reader.
func (s *store) Get(dst, key []byte) (out []byte, err error) {
	if !s.use() {
		return dst, engine.ErrClosed
	}
	defer s.done()
	v, c, err := s.db.Get(key)
	if err != nil {
		return dst, s.wrap(err)
	}
	dst = append(dst, v...)
	return dst, s.wrap(c.Close())
}

// NewIter implements engine.Reader.
func (s *store) NewIter(lower, upper []byte) (engine.Iterator, error) {
	return s.newIter(s.db, lower, upper)
}

// newIter opens an iterator over the database or a snapshot of it.
func (s *store) newIter(r pebble.Reader, lower, upper []byte) (engine.Iterator, error) {
	if !s.use() {
		return nil, engine.ErrClosed
	}
	i, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		s.done()
		return nil, s.wrap(err)
	}
	return &iter{it: i, s: s}, nil
}

// NewSnapshot implements engine.Engine.
func (s *store) NewSnapshot() engine.Snapshot {
	if !s.use() {
		return &snapshot{s: s}
	}
	return &snapshot{s: s, snap: s.db.NewSnapshot()}
}

// NewBatch implements engine.Engine.
func (s *store) NewBatch() engine.Batch { return &batch{s: s, b: s.db.NewBatch()} }

func (s *store) isFailed() bool {
	select {
	case <-s.failed:
		return true
	default:
		return false
	}
}

// Behind implements engine.Engine.
func (s *store) Behind() bool { return s.mem.behind() }

// Compact implements engine.Engine.
func (s *store) Compact(ctx context.Context) error {
	if !s.use() {
		return engine.ErrClosed
	}
	defer s.done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-s.failed:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := s.db.Compact(ctx, []byte{0}, []byte{0xff}, false)
	switch {
	case err != nil && s.closed.Load():
		return engine.ErrClosed
	case err != nil && s.isFailed():
		return s.failure
	}
	return s.wrap(err)
}

// Checkpoint implements engine.Engine: it flushes, and then links the tables into dir.
func (s *store) Checkpoint(dir string) error {
	if !s.use() {
		return engine.ErrClosed
	}
	defer s.done()
	if err := s.Flush(context.Background()); err != nil {
		return err
	}
	if err := s.db.Checkpoint(dir); err != nil {
		return fmt.Errorf("pebble: checkpoint %s: %w", dir, s.wrap(err))
	}
	return nil
}

// closePatience is how long Close waits for callers that use the engine. A call or an
// iteration ends at once; no caller should keep an iterator without using it.
const closePatience = 30 * time.Second

// Close implements engine.Engine. What was not flushed is lost. It waits for calls,
// iterators and snapshots to end; an iterator finds no more keys, and its Error is
// ErrClosed. With a full disk or after a fatal error Pebble may never finish; then, or
// if an iterator stays open, Close gives up and returns an error.
func (s *store) Close() error {
	if s.closed.Swap(true) {
		return engine.ErrClosed
	}
	close(s.closing)
	if s.uses.Load() == 0 {
		s.once.Do(func() { close(s.unused) })
	}
	select {
	case <-s.fatal:
		return ErrFatal
	default:
	}
	done := make(chan error, 1)
	go func() {
		var err error
		defer func() { done <- err }()
		<-s.unused
		s.direct.close()
		err = s.db.Close()
	}()
	kept := clock.After(closePatience)
	for {
		select {
		case err := <-done:
			return errors.Join(s.wrap(err), s.lock.Close())
		case <-s.fatal:
			return ErrFatal
		case <-kept:
			if n := s.uses.Load(); n > 0 {
				return fmt.Errorf("pebble: close %s: %d iterators or snapshots are still open", s.dir, n)
			}
		case <-clock.After(2 * time.Second):
			if s.disk.full.Load() {
				return fmt.Errorf("pebble: close %s: %w", s.dir, s.disk.lack())
			}
		}
	}
}

// iter does not move any more once the engine is being closed.
type iter struct {
	it     *pebble.Iterator
	s      *store
	closed bool
}

func (i *iter) open() bool { return !i.s.closed.Load() }

func (i *iter) First() bool            { return i.open() && i.it.First() }
func (i *iter) Last() bool             { return i.open() && i.it.Last() }
func (i *iter) SeekGE(key []byte) bool { return i.open() && i.it.SeekGE(key) }
func (i *iter) Next() bool             { return i.open() && i.it.Next() }
func (i *iter) Prev() bool             { return i.open() && i.it.Prev() }
func (i *iter) Valid() bool            { return i.open() && i.it.Valid() }
func (i *iter) Key() []byte            { return i.it.Key() }

func (i *iter) Error() error {
	if err := i.it.Error(); err != nil || i.open() {
		return i.s.wrap(err)
	}
	return engine.ErrClosed
}

func (i *iter) Close() error {
	if i.closed {
		return nil
	}
	i.closed = true
	defer i.s.done()
	return i.s.wrap(i.it.Close())
}

func (i *iter) Value() ([]byte, error) {
	v, err := i.it.ValueAndErr()
	return v, i.s.wrap(err)
}
