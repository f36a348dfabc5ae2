package pebble

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/sstable/colblk"
)

// hotBlocks keeps blocks that finders have read twice within a short time, such as those of a
// list that clients ask for again and again: reading a block again costs a system call and a
// copy from the page cache, half of what a list costs. A single pass over many blocks, such as a
// list of everything, leaves nothing here, because it has forgotten a block when it comes back.
// Blocks do not change. Safe for concurrent use.
type hotBlocks struct{ sets [hotSets]hotSet }

const (
	hotSets = 512
	hotWays = 4
	// maxHot is the largest block that is kept: one with a large record costs little for each
	// byte. Together the blocks have 32 MiB at most, half of it with blocks of the usual size.
	maxHot = 16 << 10
)

// hotSet has the blocks with the same hash.
type hotSet struct {
	blocks [hotWays]atomic.Pointer[hotBlock]
	seen   [hotWays]atomic.Uint64 // the blocks that were read last
	next   atomic.Uint32          // position in seen
	hand   atomic.Uint32          // position in blocks
}

// hotBlock is block number blk of a table. Only used changes.
type hotBlock struct {
	table uint64
	blk   int
	used  atomic.Bool // since hand has passed it
	rows  colblk.DataBlockDecoder
}

// hotHash returns the hash of a block, which is not 0.
func hotHash(table uint64, blk int) uint64 {
	h := (table<<24 + uint64(blk) + 1) * 0x9e3779b97f4a7c15 // Fibonacci hashing
	return h>>32 | h<<32 | 1
}

// get returns a block, nil if it is not kept.
func (h *hotBlocks) get(table uint64, blk int) *hotBlock {
	set := &h.sets[hotHash(table, blk)>>1%hotSets]
	for i := range set.blocks {
		if b := set.blocks[i].Load(); b != nil && b.table == table && b.blk == blk {
			if !b.used.Load() {
				b.used.Store(true)
			}
			return b
		}
	}
	return nil
}

// read tells that a block was read, and keeps it if it was read before. data is copied.
func (h *hotBlocks) read(table uint64, blk int, data []byte) {
	if len(data) > maxHot {
		return
	}
	hash := hotHash(table, blk)
	set := &h.sets[hash>>1%hotSets]
	for i := range set.seen {
		if set.seen[i].Load() == hash {
			set.keep(newHotBlock(table, blk, data))
			return
		}
	}
	set.seen[set.next.Add(1)%hotWays].Store(hash)
}

func newHotBlock(table uint64, blk int, data []byte) *hotBlock {
	b := &hotBlock{table: table, blk: blk}
	b.rows.Init(&keySchema, append(make([]byte, 0, len(data)), data...))
	return b
}

// keep replaces a block that was not used for a while.
func (s *hotSet) keep(b *hotBlock) {
	for range 2 * hotWays {
		at := &s.blocks[s.hand.Add(1)%hotWays]
		if old := at.Load(); old == nil || !old.used.Swap(false) {
			at.Store(b)
			return
		}
	}
}

// show enters a block that is in memory.
func (b *rows) show(h *hotBlock) error { return b.it.Init(&h.rows, block.NoTransforms) }
