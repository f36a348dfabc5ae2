// Package raftlog keeps one member's raft entries and hard state on disk, in
// the format of etcd's write-ahead log.
//
// In: entries, hard states and snapshot marks from one writer. Out: the
// read half of raft.Storage, safe for concurrent use, and after a restart
// everything that was acknowledged. Always true: what Append acknowledged with
// mustSync is read back after any crash; what is read back was written in that
// order, without a gap; bytes that fail their checksum are never served.
//
// docs/format/wal.md describes files and byte layout. etcd can open the
// directory and continue the log, and this package does the same with etcd's.
//
// The package accesses the disk only through a vfs.FS, except that on a file
// with a descriptor it also sets size, mode and locks.
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
	// caller may retry.
	ErrNoSpace = errors.New("no space left for the raft log")
	// ErrInUse is wrapped by errors of Create and Open when another log, in this
	// or another process, has locked the directory.
	ErrInUse = errors.New("data directory in use")
	// ErrFailed is wrapped by every error after a failed sync or a write that
	// could not be undone. The contents of the disk are then unknown; the log
	// must be reopened.
	ErrFailed = errors.New("raft log failed")
	// ErrClosed is returned by writes after Close.
	ErrClosed = errors.New("raft log closed")
	// ErrNotFound is wrapped by errors of Open and Scan if there is no log.
	ErrNotFound = errors.New("no raft log")
)

// CorruptError locates stored bytes that no log wrote, or that have changed
// since.
type CorruptError struct {
	File   string
	Offset int64 // of the record in the file, in bytes
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("raftlog: corrupt log in %s at offset %d: %v", e.File, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// Metadata identifies the member and the cluster that the log belongs to.
type Metadata struct{ NodeID, ClusterID uint64 }

// SnapshotMark records that the state up to Index is stored outside the
// log.
type SnapshotMark struct {
	Index, Term uint64
	ConfState   *raftpb.ConfState // membership at Index; nil only at index 0 or in logs of etcd before 3.5
	// Alone says that the state at Index does not result from the entries up to
	// Index, as after a restore. They are never served: the log begins after
	// them.
	Alone bool
}

// Defaults of Options.
const (
	DefaultSegmentBytes   = 64_000_000 // etcd's, decimal
	DefaultCacheBytes     = 32 << 20
	DefaultCatchUpEntries = 5000
)

// Options sets the bounds of a log. The zero value selects the defaults.
type Options struct {
	// SegmentBytes is the size at which the log switches to a new file. An
	// Append larger than that creates one larger file.
	SegmentBytes int64
	// CacheBytes bounds the entries cached in memory, the newest ones, by
	// encoded size; the newest entry is always cached. Older ones are read from
	// disk.
	CacheBytes int64
	// CatchUpEntries is how many entries before the newest mark Open keeps
	// available for slow followers, as far as they are still on disk.
	CatchUpEntries uint64
	// KeepSegments is the minimum number of files that Compact leaves. A
	// negative value keeps all.
	KeepSegments int
	// NoSync skips every sync of data. A crash of the machine may then lose or
	// corrupt the log.
	NoSync bool
	// NoBackground creates the next file inside the call that needs it, instead
	// of in advance on a goroutine.
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
	// zeroAhead is how many bytes of zeros are written after the newest record,
	// in the same write. Until they are used up, a sync has no file system
	// metadata to write: the blocks are allocated, initialised and counted in
	// the file's size. Measured on ext4 with groups of 8 KiB: 130 µs a sync
	// instead of 215.
	zeroAhead = 256 << 10
	// flushBytes bounds the write buffer. A group of entries beyond it is written
	// in steps, with one sync at the end.
	flushBytes = 4 << 20
	// slowSync is the duration from which a sync logs a warning.
	slowSync = time.Second
)

// Log is one open raft log.
//
// Writes (Append, SaveMark, Reset, Close) are serialized by wmu and access the
// disk with it held. Compact removes files with only cmu held: that may take
// long and must not block Append. Readers take mu only, which is never held
// during disk access: a write publishes its entries under mu when they are on
// disk, a reader copies positions under mu and then reads the files, whose
// written bytes never change. If Compact has removed a file in the meantime,
// the reader returns raft.ErrCompacted. Lock order: cmu, wmu, mu.
type Log struct {
	// Constant after construction.
	fs      vfs.FS
	dir     string
	opts    Options
	lg      *zap.Logger
	md      Metadata
	rawMD   []byte // data of the first metadata record
	dirFile vfs.File
	dirLock io.Closer // nil if the directory itself is locked

	cmu sync.Mutex // held while segments are removed

	wmu      sync.Mutex // guards the fields below
	tailSeg  segment
	tail     vfs.File // the last segment
	tailOff  int64    // offset of the next record
	tailCap  int64    // reserved size of the tail
	zeroed   int64    // the tail is written up to here, with records or zeros
	tailHead int64    // size of the head records of the tail
	crc      uint32   // running checksum at tailOff
	unsynced bool     // the tail has writes that are not synced
	doubtful bool     // a frame written since noteSynced could be mistaken for torn
	noted    bool     // the last record says that everything before it is synced
	pending  bool     // hs is newer than the log's last state record
	buf      []byte   // write buffer, reused between calls
	failed   error    // set once; then every write returns it
	closed   bool
	spare    *spare // next segment being prepared, may be nil
	spareSeq int    // number of spares created

	mu    sync.RWMutex // guards the fields below
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

// Probe is Exists for callers that must not take an unreadable directory for an
// empty one.
func Probe(fs vfs.FS, dir string) (bool, error) {
	segs, err := listSegments(fs, dir)
	if err == nil || isNotExist(err) {
		return len(segs) > 0, nil
	}
	return false, err
}

// Create creates an empty log in dir, which must not hold one. The log
// appears there atomically and durably; the remains of an earlier attempt
// are replaced. The parent directory of dir is created if it is missing.
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

// removeEmptyDir removes the old directory, so that the new one can be
// renamed to its name. The old one holds no log, and may hold nothing else
// but leftovers of preallocation.
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

// lock locks the directory for this log.
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

// release closes the log's files and releases the directory lock.
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

// Close writes and syncs pending data and releases the directory lock. A second
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

// Metadata returns the ids of the member and the cluster that the log
// belongs to.
func (l *Log) Metadata() Metadata { return l.md }

// HardState returns the newest hard state, nil if there is none. The caller
// must not modify it.
func (l *Log) HardState() *raftpb.HardState {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.hs
}

// Mark returns the newest mark. The caller must not modify its ConfState.
func (l *Log) Mark() SnapshotMark {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mark
}

func (l *Log) path(s segment) string { return l.fs.PathJoin(l.dir, s.name()) }

// tailPath returns the path of the last segment; wmu must be held.
func (l *Log) tailPath() string { return l.path(l.tailSeg) }

// fail makes the log reject all further writes.
func (l *Log) fail(step string, err error) error {
	l.failed = fmt.Errorf("%w: %s: %w", ErrFailed, step, err)
	l.lg.Error("raft log failed", zap.String("path", l.dir), zap.String("step", step), zap.Error(err))
	return l.failed
}

// usable returns the error with which every write must fail, nil if the log
// is open and has not failed.
func (l *Log) usable() error {
	if l.closed {
		return ErrClosed
	}
	return l.failed
}

// sync makes the tail durable. A failure is final: the kernel may have dropped
// the pages that it could not write, so a later successful sync would prove
// nothing.
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

// noSpace wraps an error with ErrNoSpace if a full disk caused it.
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
