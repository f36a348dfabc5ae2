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
	"os"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/descriptors"
	"quorate/internal/durable"
	"quorate/internal/ids"
)

var (
	// ErrNoSpace is wrapped by errors of Append, SaveMark and Reset when the disk
	// is full, or no file descriptor is left for a new segment. Nothing of the call
	// is in the log and the log stays usable: the caller may retry.
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
type Metadata struct {
	NodeID    ids.Member
	ClusterID ids.Cluster
}

// SnapshotMark records that the state up to Index is stored outside the
// log.
type SnapshotMark struct {
	Index     ids.Index
	Term      ids.Term
	ConfState *raftpb.ConfState // membership at Index; nil only at index 0 or in logs of etcd before 3.5
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

// Log is one open raft log. The reader, whose methods are its read half, holds what is published; the
// writer appends to the last segment.
//
// Writes (Append, SaveMark, Reset, Close) are serialized by wmu and access the disk with it held.
// Compact removes files with only cmu held: that may take long and must not block Append. Readers take
// the reader's mu only, which is never held during disk access: a write publishes its entries under mu
// when they are on disk, a reader copies positions under mu and then reads the files, whose written
// bytes never change. If Compact has removed a file in the meantime, the reader returns
// raft.ErrCompacted. Lock order: cmu, wmu, mu.
type Log struct {
	reader
	opts Options
	md   Metadata

	cmu sync.Mutex // held while segments are removed

	wmu    sync.Mutex // guards the fields below
	w      writer
	closed bool
}

// newLog returns a log in dir that has no files yet.
func newLog(fs vfs.FS, dir string, o Options) *Log {
	d := &directory{fs: fs, path: dir, lg: o.Logger}
	l := &Log{reader: reader{dir: d}, opts: o}
	l.w = writer{dir: d, opts: o, r: &l.reader}
	return l
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
	l := newLog(fs, dir, o)
	l.md, l.w.rawMD = md, appendMetadata(nil, md)
	l.segs, l.table = []segment{{}}, table{first: 1}
	if err := l.build(tmp); err != nil {
		l.release()
		return nil, errors.Join(err, fs.RemoveAll(tmp))
	}
	l.w.prepareSpare()
	return l, nil
}

// build writes the first segment below tmp, moves it to the log's directory and locks that.
func (l *Log) build(tmp string) error {
	fs, w := l.dir.fs, &l.w
	first := fs.PathJoin(tmp, w.seg.name())
	f, err := allocate(fs, first, l.opts.SegmentBytes)
	if err != nil {
		return err
	}
	w.file, w.cap = f, l.opts.SegmentBytes
	head := w.appendHead(nil, 0, nil)
	zero, err := appendMark(nil, SnapshotMark{})
	if err != nil {
		return err
	}
	head, w.crc = appendRecord(head, w.crc, TypeSnapshot, zero)
	if err := w.writeHead(f, head); err != nil {
		return fmt.Errorf("raftlog: write %s: %w", first, noSpace(err))
	}
	if err := durable.SyncDir(fs, tmp); err != nil {
		return fmt.Errorf("raftlog: %w", err)
	}
	if err := l.dir.removeEmptyDir(); err != nil {
		return err
	}
	if err := durable.Rename(fs, tmp, l.dir.path); err != nil {
		return fmt.Errorf("raftlog: %w", err)
	}
	return l.dir.acquire()
}

// release closes the log's files and releases the directory lock.
func (l *Log) release() error { return errors.Join(l.w.close(), l.dir.release()) }

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
	if l.w.failed == nil && l.w.pending {
		_, err = l.w.writeGroup(l.hs, nil)
	}
	if l.w.failed == nil && l.w.unsynced {
		err = errors.Join(err, l.w.sync())
	}
	return errors.Join(err, l.release())
}

// Metadata returns the ids of the member and the cluster that the log
// belongs to.
func (l *Log) Metadata() Metadata { return l.md }

// usable returns the error with which every write must fail, nil if the log
// is open and has not failed.
func (l *Log) usable() error {
	if l.closed {
		return ErrClosed
	}
	return l.w.failed
}

// lacking reports whether a call failed because the disk is full or no file descriptor is
// left. Neither says that anything is wrong with the disk.
func lacking(err error) bool { return vfs.IsNoSpaceError(err) || descriptors.Exhausted(err) }

// noSpace wraps an error with ErrNoSpace if a full disk, or a lack of descriptors, caused it.
func noSpace(err error) error {
	if lacking(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

func cloneHardState(hs *raftpb.HardState) *raftpb.HardState {
	return hardState(ids.Term(hs.GetTerm()), hs.GetVote(), hs.GetCommit())
}

func (m SnapshotMark) clone() SnapshotMark {
	if m.ConfState != nil {
		m.ConfState = proto.Clone(m.ConfState).(*raftpb.ConfState)
	}
	return m
}
