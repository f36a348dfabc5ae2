package pebble

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// memtables approximates what is committed and only in memory. Safe for concurrent use.
type memtables struct {
	size    int64       // of one
	encoded amount      // as in batches, about what it will need on disk
	memory  amount      // what it needs in the memtables
	active  atomic.Bool // a flush is in progress
	// ended holds an element if a flush has ended since it was last empty.
	ended chan struct{}
}

// amount is in bytes, with the part of it that the flush in progress writes; 0 if there is none.
// What was added before a flush began counts as written by it, although a memtable that is queued
// behind it, or not full, is not: Pebble does not tell which batch is in which.
type amount struct{ all, flushing atomic.Int64 }

func (a *amount) begin() { a.flushing.Store(a.all.Load()) }
func (a *amount) end()   { a.all.Add(-a.flushing.Swap(0)) }

// recordBytes is what a record needs in a memtable beyond its bytes.
const recordBytes = 48

func newMemtables(size int64) memtables {
	return memtables{size: size, ended: make(chan struct{}, 1)}
}

// emptyFlush is the text of the error with which Pebble reports a flush that had nothing to
// write, and which it does not export. A batch that a flush took before it was counted here is
// such a flush's only content.
const emptyFlush = "pebble: empty table"

// add counts a committed batch.
func (m *memtables) add(encoded, records int64) {
	m.encoded.all.Add(encoded)
	m.memory.all.Add(encoded + recordBytes*records)
}

func (m *memtables) flushBegun(pebble.FlushInfo) {
	m.encoded.begin()
	m.memory.begin()
	m.active.Store(true)
}

func (m *memtables) flushEnded(i pebble.FlushInfo) {
	if i.Err != nil && i.Err.Error() != emptyFlush {
		return // Pebble tries again
	}
	m.encoded.end()
	m.memory.end()
	m.active.Store(false)
	select {
	case m.ended <- struct{}{}:
	default:
	}
}

// flushing reports whether a flush is in progress.
func (m *memtables) flushing() bool { return m.active.Load() }

// behind reports whether a flush is in progress that may not end in time: with a third
// memtable, Pebble lets all writers wait for it.
func (m *memtables) behind() bool {
	return m.flushing() && m.memory.all.Load()-m.memory.flushing.Load() > m.size/2
}

// full reports whether two memtables are full. A third one could not be replaced without a
// flush.
func (m *memtables) full() bool { return m.memory.all.Load() > 2*m.size }
