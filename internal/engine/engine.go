// Package engine is the ordered key space under the state machine.
//
// In: atomic batches of sets and deletes, from one writer. Out: point reads and
// ordered iteration, from any goroutine, also at a fixed point in time. Always true: a
// batch becomes visible, and survives a crash, atomically; what survives a crash is a
// prefix of the batches in commit order. The engine has no log of its own: batches
// after the last Flush are lost with the process and are recovered by replaying the
// raft log from the applied index, which is part of every batch.
//
// Implementations: engine/pebble (production) and engine/mem (in memory, for the
// simulator). Both pass the suite in engine/enginetest.
package engine

import (
	"context"
	"errors"

	"quorate/internal/scrub"
)

// ErrNotFound is returned by Get for a key that does not exist.
var ErrNotFound = errors.New("engine: key not found")

// ErrClosed is returned by every method after Close.
var ErrClosed = errors.New("engine: closed")

// CorruptionError names stored bytes that failed their checksum or cannot be
// decoded. Such bytes are never returned as data.
type CorruptionError struct {
	File string // damaged file or key, as far as known
	Err  error
}

func (e *CorruptionError) Error() string {
	return "engine: corrupt data in " + e.File + ": " + e.Err.Error()
}

func (e *CorruptionError) Unwrap() error { return e.Err }

// Bucket is the first byte of an engine key. The numbers follow the order of etcd's
// bucket names, so an iteration over everything visits the buckets in the order in
// which etcd hashes them.
type Bucket byte

// The buckets of etcd's schema.
const (
	Alarm Bucket = iota + 1
	Auth
	AuthRoles
	AuthUsers
	Cluster
	Key
	Lease
	Members
	MembersRemoved
	Meta
)

// V2 is the tree of the v2 API, which etcd keeps in memory and in the raft snapshot,
// not in a bucket. It is state of the cluster, but not part of its hash.
const V2 Bucket = 16

// Digest is the digest of the entries that this member has applied, for comparison with
// other members. Members of Quorate pass it on with a snapshot; it is not part of the
// cluster's state.
const Digest Bucket = 17

// Local holds what belongs to this member's directory alone: it is not hashed, not
// exported and not sent to other members.
const Local Bucket = 32

// String returns etcd's name for the bucket.
func (b Bucket) String() string {
	switch b { // names that etcd does not have
	case V2:
		return "v2"
	case Digest:
		return "quorate_digest"
	}
	names := [...]string{"", "alarm", "auth", "authRoles", "authUsers", "cluster",
		"key", "lease", "members", "members_removed", "meta"}
	if int(b) >= len(names) {
		return "unknown"
	}
	return names[b]
}

// K returns the engine key of a bucket key.
func (b Bucket) K(key []byte) []byte {
	k := make([]byte, 1+len(key))
	k[0] = byte(b)
	copy(k[1:], key)
	return k
}

// Bounds returns the half-open range of engine keys of the bucket.
func (b Bucket) Bounds() (lower, upper []byte) {
	return []byte{byte(b)}, []byte{byte(b) + 1}
}

// Reader reads a consistent state. All methods are safe for concurrent use.
type Reader interface {
	// Get appends the value of key to dst and returns the extended slice, or
	// ErrNotFound. The result does not alias engine memory.
	Get(dst, key []byte) ([]byte, error)
	// NewIter iterates over [lower, upper); nil means unbounded. An iterator is not safe
	// for concurrent use, sees the state at its creation and must be closed. Opening one
	// costs about 15 µs in Pebble: do not use it for point reads.
	NewIter(lower, upper []byte) (Iterator, error)
}

// Iterator walks keys in ascending byte order. Key and Value are valid until
// the next positioning call.
type Iterator interface {
	First() bool
	Last() bool
	SeekGE(key []byte) bool
	Next() bool
	Prev() bool
	Valid() bool
	Key() []byte
	Value() ([]byte, error)
	// Error returns the error that ended the iteration early, if any. It must be
	// checked when Valid returns false.
	Error() error
	Close() error
}

// Snapshot is a Reader at one point in time.
type Snapshot interface {
	Reader
	Close() error
}

// Batch collects writes. It is not safe for concurrent use. Keys and values are
// copied before a method returns.
type Batch interface {
	Set(key, value []byte)
	Delete(key []byte)
	// DeleteRange deletes [lower, upper).
	DeleteRange(lower, upper []byte)
	// Len returns the encoded size in bytes.
	Len() int
	// Commit makes the batch visible to new readers, atomically. It is durable only
	// after the next Flush. The batch must not be used again. After an error, which means
	// that the engine fails, closes or has given up waiting for its disk, the batch may
	// still become visible, and durable.
	Commit() error
	// Discard drops a batch that was not committed.
	Discard()
}

// Size is the disk space of the engine, in bytes.
type Size struct {
	// Total is the size of the files that hold the current state of the store. It does
	// not include files that a flush or compaction is writing, nor replaced files that
	// are deleted as soon as no reader needs them: those would make a store look larger
	// while it shrinks.
	Total int64
	InUse int64 // estimate of what live data needs
}

// Engine is the store of one member.
type Engine interface {
	Reader
	NewBatch() Batch
	NewSnapshot() Snapshot
	// Flush makes every batch that was committed before the call durable. It runs
	// concurrently with commits and reads and may take seconds, on a full disk until
	// there is room. When ctx is done it returns ctx's error; the flush may still happen.
	Flush(ctx context.Context) error
	// Behind reports whether batches arrive faster than they are flushed. Whoever can wait
	// should: if it goes on, all writers wait for the flush.
	Behind() bool
	// Compact rewrites the store to reclaim space, in steps and concurrently with other
	// calls, until done or until ctx is done.
	Compact(ctx context.Context) error
	// Checkpoint writes a durable copy, which Open accepts, into dir, which must not
	// exist. Reads and writes continue.
	Checkpoint(dir string) error
	Size() Size
	Close() error
}

// Scrubber is implemented by engines whose files can be checked while they are in use.
type Scrubber interface {
	// Scrub reads every file that the current state consists of, verifies its checksums,
	// and reports damage to r. It does not block other calls.
	Scrub(r *scrub.Reader) error
}

// Direct is implemented by engines that read the values of keys in ascending order from
// their files, past the block cache, at a fraction of the cost of an iterator.
type Direct interface {
	// NewFinder returns nil if an iterator costs less, or if there are too many finders at
	// the moment. scattered tells that few of the keys between the first and the last are
	// wanted.
	NewFinder(scattered bool) Finder
}

// Finder finds values of keys that are asked for in ascending order. It is for keys that
// never get a second value and are not deleted meanwhile: it returns the value from
// whichever file has it. It is not safe for concurrent use, and must be closed soon, as
// it keeps files open.
type Finder interface {
	// Find returns the value of key, which is valid until the next call. If ok is false,
	// the key may still exist, and an iterator finds it, or reports what is wrong.
	Find(key []byte) (value []byte, ok bool)
	Close()
}
