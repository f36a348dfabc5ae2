// Package raftlog keeps one member's raft entries and hard state on disk, in
// the format of etcd's write-ahead log.
//
// In: entries, hard states and snapshot marks from one writer. Out: the read
// half of raft.Storage, to any goroutine, and after a restart everything that
// was acknowledged. Always true: what Append acknowledged with mustSync is read
// back after any crash; what is read back was written, in that order, with no
// gap; bytes that fail their checksum are never served.
//
// Files and byte layout are described in docs/format/wal.md. A real etcd opens
// and continues the directory, and this package opens and continues etcd's.
//
// The package works on a vfs.FS and makes no other access to the disk, except
// that on a file with a descriptor it also sets size, mode and locks.
package raftlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/clock"
	"quorate/internal/durable"
	"quorate/internal/metrics"
)

var (
	// ErrNoSpace is wrapped by errors of Append, SaveMark and Reset when the disk
	// is full. Nothing of the call is in the log and the log stays usable: the
	// call may be made again.
	ErrNoSpace = errors.New("no space left for the raft log")
	// ErrInUse is wrapped by errors of Create and Open when another log, of this
	// or another process, holds the directory.
	ErrInUse = errors.New("data directory in use")
	// ErrFailed is wrapped by every error after a failed sync or a write that
	// could not be undone. What is on the disk is not known then; the log must be
	// opened again.
	ErrFailed = errors.New("raft log failed")
	// ErrClosed is returned by writes after Close.
	ErrClosed = errors.New("raft log closed")
	// ErrNotFound is wrapped by errors of Open and Scan if there is no log.
	ErrNotFound = errors.New("no raft log")
)

// CorruptError names stored bytes that cannot have been written by a log, or
// have changed since.
type CorruptError struct {
	File   string
	Offset int64 // of the record in the file, in bytes
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("raftlog: corrupt log in %s at offset %d: %v", e.File, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// Metadata says whose log it is.
type Metadata struct{ NodeID, ClusterID uint64 }

// SnapshotMark records that the state up to Index is held outside the log.
type SnapshotMark struct {
	Index, Term uint64
	ConfState   *raftpb.ConfState // membership at Index; nil only at index 0 or in logs of etcd before 3.5
	// Alone says that the entries up to Index do not make the state at Index, as
	// after a restore. They are never served: the log begins behind them.
	Alone bool
}

// Defaults of Options.
const (
	DefaultSegmentBytes   = 64_000_000 // etcd's, decimal
	DefaultCacheBytes     = 32 << 20
	DefaultCatchUpEntries = 5000
)

// Options sets the bounds of a log. The zero value is the product's.
type Options struct {
	// SegmentBytes is the size at which the log goes on in a new file. An Append
	// larger than that makes one larger file.
	SegmentBytes int64
	// CacheBytes bounds the newest entries that are kept in memory, by encoded
	// size; the newest one is kept in any case. Older ones are read from disk.
	CacheBytes int64
	// CatchUpEntries is how many entries before the newest mark Open keeps
	// available, as far as they are still on disk, for followers that lag behind.
	CatchUpEntries uint64
	// KeepSegments is how many files Compact leaves even if they are not needed.
	// Negative keeps all.
	KeepSegments int
	// NoSync leaves out every sync of data. A crash of the machine may then lose
	// or damage the log.
	NoSync bool
	// NoBackground prepares the next file inside the call that needs it, instead
	// of on a goroutine in advance.
	NoBackground bool
	Logger       *zap.Logger // nil: none
}

func (o Options) withDefaults() Options {
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.CatchUpEntries == 0 {
		o.CatchUpEntries = DefaultCatchUpEntries
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return o
}

const (
	category = vfs.DiskWriteCategory("raft-log")
	// zeroAhead is how far behind the newest record zeros are written along with
	// it. Until these are used up, a sync has no file system metadata to write:
	// the blocks are allocated, initialised and counted in the file's size.
	// Measured on ext4, groups of 8 KiB: 130 µs a sync against 215.
	zeroAhead = 256 << 10
	// flushBytes bounds the write buffer. A group of entries beyond it is written
	// in steps, with one sync at the end.
	flushBytes = 4 << 20
	// slowSync is when a sync is worth a warning.
	slowSync = time.Second
)

// Log is one open raft log.
//
// Writes (Append, SaveMark, Reset, Close) exclude one another by wmu and touch
// the disk under it. Compact removes files under cmu alone: that may take long
// and must not hold up an Append. Readers take mu only, which is never held
// over a disk access: a write publishes its entries under mu when they are on
// disk, a reader copies positions under mu and then reads the files, whose
// written bytes never change. A file that Compact removed meanwhile shows as
// raft.ErrCompacted. Lock order: cmu, wmu, mu.
type Log struct {
	// Constant after construction.
	fs      vfs.FS
	dir     string
	opts    Options
	lg      *zap.Logger
	md      Metadata
	rawMD   []byte // metadata record as first written
	dirFile vfs.File
	dirLock io.Closer // nil if the directory itself is locked

	cmu sync.Mutex // held while segments are removed

	wmu      sync.Mutex // guards the following
	tailSeg  segment
	tail     vfs.File // the last segment
	tailOff  int64    // where the next record goes
	tailCap  int64    // reserved size of the tail
	zeroed   int64    // the tail is written, with records or zeros, up to here
	tailHead int64    // size of the head records of the tail
	crc      uint32   // running checksum at tailOff
	unsynced bool     // the tail has writes that are not synced
	doubtful bool     // a frame that was written since noteSynced could be taken for torn
	noted    bool     // the last record says that all before it is synced
	pending  bool     // hs is newer than the log's last state record
	buf      []byte   // write buffer, kept between calls
	failed   error    // set once, then every write returns it
	closed   bool
	spare    *spare // next segment being prepared, may be nil
	spareSeq int    // number of spares made

	mu    sync.RWMutex // guards the following
	segs  []segment    // ascending; only cut appends, only removeSegments shortens
	hs    *raftpb.HardState
	mark  SnapshotMark
	table table
}

// Exists reports whether the directory holds a log.
func Exists(fs vfs.FS, dir string) bool {
	there, err := Probe(fs, dir)
	return err == nil && there
}

// Probe is Exists for those who must not take a directory that they cannot read
// for an empty one.
func Probe(fs vfs.FS, dir string) (bool, error) {
	segs, err := listSegments(fs, dir)
	if err == nil || isNotExist(err) {
		return len(segs) > 0, nil
	}
	return false, err
}

// Create makes an empty log in dir, which must not hold one. The log appears
// there as a whole and durably, or not at all; a remainder of an earlier
// attempt is replaced. The directory above dir is created if it is missing.
func Create(fs vfs.FS, dir string, md Metadata, o Options) (*Log, error) {
	o = o.withDefaults()
	if Exists(fs, dir) {
		return nil, fmt.Errorf("raftlog: create %s: %w", dir, os.ErrExist)
	}
	dir = strings.TrimRight(dir, "/") // ".tmp" belongs to the last name
	tmp := dir + ".tmp"
	if err := fs.RemoveAll(tmp); err != nil {
		return nil, fmt.Errorf("raftlog: remove %s: %w", tmp, err)
	}
	if err := fs.MkdirAll(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("raftlog: create %s: %w", tmp, noSpace(err))
	}
	l := &Log{
		fs: fs, dir: dir, opts: o, lg: o.Logger, md: md,
		rawMD: appendMetadata(nil, md),
		segs:  []segment{{}},
		table: table{first: 1},
	}
	if err := l.build(tmp); err != nil {
		l.release()
		return nil, errors.Join(err, fs.RemoveAll(tmp))
	}
	l.prepareSpare()
	return l, nil
}

// build writes the first segment below tmp, moves it to dir and locks it.
func (l *Log) build(tmp string) error {
	first := l.fs.PathJoin(tmp, l.tailSeg.name())
	f, err := allocate(l.fs, first, l.opts.SegmentBytes)
	if err != nil {
		return err
	}
	l.tail, l.tailCap = f, l.opts.SegmentBytes
	head := l.appendHead(nil, 0, nil)
	zero, err := appendMark(nil, SnapshotMark{})
	if err != nil {
		return err
	}
	head, l.crc = appendRecord(head, l.crc, TypeSnapshot, zero)
	if err := l.writeHead(f, head); err != nil {
		return fmt.Errorf("raftlog: write %s: %w", first, noSpace(err))
	}
	if err := durable.SyncDir(l.fs, tmp); err != nil {
		return fmt.Errorf("raftlog: %w", err)
	}
	if err := l.removeEmptyDir(); err != nil {
		return err
	}
	if err := durable.Rename(l.fs, tmp, l.dir); err != nil {
		return fmt.Errorf("raftlog: %w", err)
	}
	return l.lock()
}

// removeEmptyDir makes room for the new directory. Whatever is in the old one
// is not a log; only remainders of preallocation may be thrown away.
func (l *Log) removeEmptyDir() error {
	names, err := l.fs.List(l.dir)
	if isNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("raftlog: list %s: %w", l.dir, err)
	}
	for _, n := range names {
		if path.Ext(n) != ".tmp" {
			return fmt.Errorf("raftlog: create %s: directory holds %q but no log", l.dir, n)
		}
	}
	if err := l.fs.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("raftlog: remove %s: %w", l.dir, err)
	}
	return nil
}

// lock takes the directory for this log.
func (l *Log) lock() error {
	d, err := l.fs.OpenDir(l.dir)
	if err != nil {
		return fmt.Errorf("raftlog: open %s: %w", l.dir, err)
	}
	l.dirFile = d
	done, err := lockDir(d)
	if err == nil && !done {
		l.dirLock, err = l.fs.Lock(l.fs.PathJoin(l.dir, "lock.tmp"))
		if err != nil {
			err = fmt.Errorf("%w (%v)", ErrInUse, err)
		}
	}
	if err != nil {
		return fmt.Errorf("raftlog: lock %s: %w", l.dir, err)
	}
	return nil
}

// release closes what the log holds.
func (l *Log) release() error {
	var err error
	if l.spare != nil {
		l.spare.discard()
		l.spare = nil
	}
	if l.tail != nil {
		err = l.tail.Close()
		l.tail = nil
	}
	if l.dirLock != nil {
		err = errors.Join(err, l.dirLock.Close())
		l.dirLock = nil
	}
	if l.dirFile != nil {
		err = errors.Join(err, l.dirFile.Close())
		l.dirFile = nil
	}
	return err
}

// Close writes and syncs what is pending and gives the directory free. A second
// Close does nothing.
func (l *Log) Close() error {
	l.cmu.Lock()
	defer l.cmu.Unlock()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	var err error
	if l.failed == nil && l.pending {
		_, err = l.writeGroup(l.hs, nil)
	}
	if l.failed == nil && l.unsynced {
		err = errors.Join(err, l.sync())
	}
	return errors.Join(err, l.release())
}

// Metadata returns whose log it is.
func (l *Log) Metadata() Metadata { return l.md }

// HardState returns the newest hard state, or nil if there has been none. The
// caller must not change it.
func (l *Log) HardState() *raftpb.HardState {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.hs
}

// Mark returns the newest mark. The caller must not change its ConfState.
func (l *Log) Mark() SnapshotMark {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mark
}

func (l *Log) path(s segment) string { return l.fs.PathJoin(l.dir, s.name()) }

// tailPath returns the path of the last segment; wmu must be held.
func (l *Log) tailPath() string { return l.path(l.tailSeg) }

// fail stops the log for good.
func (l *Log) fail(step string, err error) error {
	l.failed = fmt.Errorf("%w: %s: %w", ErrFailed, step, err)
	l.lg.Error("raft log failed", zap.String("path", l.dir), zap.String("step", step), zap.Error(err))
	return l.failed
}

// usable returns the error that a write must return at once, if any.
func (l *Log) usable() error {
	if l.closed {
		return ErrClosed
	}
	return l.failed
}

// sync makes the tail durable. A failure is final: the kernel may have dropped
// the pages it could not write, so a second, successful sync would prove nothing.
func (l *Log) sync() error {
	if l.opts.NoSync {
		l.unsynced = false
		return nil
	}
	start := clock.Now()
	err := l.tail.SyncData()
	took := clock.Since(start)
	metrics.DiskWALFsyncDurationSeconds.Observe(took.Seconds())
	if err != nil {
		return l.fail("sync "+l.tailPath(), err)
	}
	if took > slowSync {
		l.lg.Warn("slow fdatasync", zap.Duration("took", took), zap.Duration("expected-duration", slowSync))
	}
	l.unsynced = false
	return nil
}

// noSpace marks an error as ErrNoSpace if a full disk caused it.
func noSpace(err error) error {
	if vfs.IsNoSpaceError(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

func cloneHardState(hs *raftpb.HardState) *raftpb.HardState {
	return hardState(hs.GetTerm(), hs.GetVote(), hs.GetCommit())
}

func (m SnapshotMark) clone() SnapshotMark {
	if m.ConfState != nil {
		m.ConfState = proto.Clone(m.ConfState).(*raftpb.ConfState)
	}
	return m
}
