package pebble

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// memtables counts what is committed and only in memory. Safe for concurrent use.
//
// Pebble tells how much of its memory a flush writes, but not which batches. What a batch needs
// there is known but for the random part of it, which averages out; an error that remains ends
// with the next requested flush, which tells that all earlier batches are written.
type memtables struct {
	size int64 // of one

	mu       sync.Mutex
	all      amount // committed, or being committed, and not written
	flushing amount // the part of it that the flush in progress writes
	active   bool   // a flush is in progress
	large    bool   // a large batch was committed since the flush began
	begun    amount // total of the commits that have begun
	done     amount // total of those that have ended

	// ended holds an element if a flush has ended since it was last empty.
	ended chan struct{}
}

// amount is in bytes.
type amount struct {
	encoded int64 // as in batches, about what it will need on disk
	memory  int64 // what it needs in the memtables
	large   bool  // a batch that is not copied into a memtable
}

func (a amount) plus(b amount) amount {
	return amount{encoded: a.encoded + b.encoded, memory: a.memory + b.memory}
}

func (a amount) minus(b amount) amount {
	return amount{encoded: a.encoded - b.encoded, memory: a.memory - b.memory}
}

// atMost returns a, limited to b.
func (a amount) atMost(b amount) amount {
	return amount{encoded: min(a.encoded, b.encoded), memory: min(a.memory, b.memory)}
}

// part returns the part of a that has so many bytes of its memory.
func (a amount) part(memory int64) amount {
	if memory >= a.memory {
		return a
	}
	return amount{encoded: int64(float64(a.encoded) * float64(memory) / float64(a.memory)), memory: memory}
}

const (
	batchHeader = 12
	// nodeBytes is what a memtable's skip list needs for a record more than a batch. A node has
	// 24 bytes, 8 for each of its levels, of which there are 1.58 on average, and 3 to align
	// it; a record in a batch has 4 beside key and value, unless it is short.
	nodeBytes = 36
	// reservedBytes is the same for a node with all 20 levels, and 8 bytes for its key.
	reservedBytes = 191
)

// amountOf returns the amount of a batch. A large one could need half a memtable.
func (m *memtables) amountOf(encoded, records int64) amount {
	a := amount{encoded: encoded, memory: encoded - batchHeader}
	if a.large = a.memory+records*reservedBytes >= m.size/2-nearHalf; !a.large {
		a.memory += records * nodeBytes
	}
	return a
}

// nearHalf is by how much Pebble's half of a memtable may be smaller.
const nearHalf = 16 << 10

func newMemtables(size int64) memtables {
	return memtables{size: size, ended: make(chan struct{}, 1)}
}

// emptyFlush is the text of the error with which Pebble reports a flush that had nothing to
// write, and which it does not export.
const emptyFlush = "pebble: empty table"

// begin counts a batch before its commit, because the flush that writes it may begin before the
// commit ends.
func (m *memtables) begin(a amount) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all, m.begun = m.all.plus(a), m.begun.plus(a)
	m.large = m.large || a.large
}

// end counts the batch after its commit.
func (m *memtables) end(a amount, committed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if committed {
		m.done = m.done.plus(a)
		m.large = m.large || a.large // a flush that began in between may not have it
		return
	}
	m.all, m.begun = m.all.minus(a), m.begun.minus(a)
	m.flushing = m.flushing.atMost(m.all)
}

func (m *memtables) flushBegun(i pebble.FlushInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushing, m.active, m.large = m.all.part(int64(i.InputBytes)), true, false
}

func (m *memtables) flushEnded(i pebble.FlushInfo) {
	if i.Err != nil && i.Err.Error() != emptyFlush {
		return // Pebble tries again
	}
	m.mu.Lock()
	m.all = m.all.minus(m.flushing)
	m.flushing, m.active = amount{}, false
	m.mu.Unlock()
	select {
	case m.ended <- struct{}{}:
	default:
	}
}

// committed returns the total of the commits that have ended.
func (m *memtables) committed() amount {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done
}

// written tells that everything is written that was committed when committed returned this.
func (m *memtables) written(committed amount) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = m.all.atMost(m.begun.minus(committed))
	m.flushing = m.flushing.atMost(m.all)
}

// inMemory returns what is not written yet, as it will need on disk.
func (m *memtables) inMemory() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all.encoded
}

// isFlushing reports whether a flush is in progress.
func (m *memtables) isFlushing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active
}

// behind reports whether a flush is in progress that may not end in time: with a third
// memtable, Pebble lets all writers wait for it. Behind a large batch it uses a new one.
func (m *memtables) behind() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active && (m.large || m.all.memory-m.flushing.memory > m.size/2)
}
