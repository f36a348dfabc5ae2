package raftlog

import (
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// slot is the position of an entry on disk. It takes 24 bytes.
type slot struct {
	term   ids.Term
	off8   uint32 // offset of its frame divided by 8: frames are 8-byte aligned
	seq    uint32 // low bits of the segment's sequence number
	before uint32 // running checksum before the record
	size   uint32 // encoded size in bytes
}

// table holds the position of every available entry, and the newest entries
// themselves up to a bound in bytes. Entry i is slots[i-first].
type table struct {
	first    ids.Index // index of the first available entry
	baseTerm ids.Term  // term of entry first-1
	slots    []slot
	// cache is the newest len(cache) entries; bytes is their encoded size.
	cache []*raftpb.Entry
	bytes int64
}

func (t *table) last() ids.Index { return t.first + ids.Index(len(t.slots)) - 1 }

// term returns the term of entry i, which must be in [first-1, last].
func (t *table) term(i ids.Index) ids.Term {
	if i == t.first-1 {
		return t.baseTerm
	}
	return t.slots[i-t.first].term
}

// truncate drops entry i and all later ones.
func (t *table) truncate(i ids.Index) {
	if i > t.last() {
		return
	}
	keep := int(i - t.first)
	drop := len(t.slots) - keep
	if drop >= len(t.cache) {
		t.dropCache()
	} else {
		n := len(t.cache) - drop
		for k := n; k < len(t.cache); k++ {
			t.bytes -= int64(t.slots[len(t.slots)-len(t.cache)+k].size)
		}
		clear(t.cache[n:])
		t.cache = t.cache[:n]
	}
	t.slots = t.slots[:keep]
}

// push appends an entry. e is nil for one that is on disk only; push then
// empties the cache.
func (t *table) push(s slot, e *raftpb.Entry) {
	t.slots = append(t.slots, s)
	if e == nil {
		t.dropCache()
		return
	}
	t.cache = append(t.cache, e)
	t.bytes += int64(s.size)
}

// shrink drops the oldest cached entries until their size is within limit,
// but keeps the last one.
func (t *table) shrink(limit int64) {
	i := 0
	for ; t.bytes > limit && i < len(t.cache)-1; i++ {
		t.bytes -= int64(t.slots[len(t.slots)-len(t.cache)+i].size)
		t.cache[i] = nil
	}
	t.cache = t.cache[i:]
}

func (t *table) dropCache() {
	clear(t.cache)
	t.cache, t.bytes = nil, 0
}

// compact drops every entry up to through, which must be in [first-1, last].
func (t *table) compact(through ids.Index) {
	if through < t.first {
		return
	}
	t.baseTerm = t.term(through)
	n := int(through - t.first + 1)
	keep := len(t.slots) - n
	if len(t.cache) > keep {
		drop := len(t.cache) - keep
		for k := range drop {
			t.bytes -= int64(t.slots[len(t.slots)-len(t.cache)+k].size)
			t.cache[k] = nil
		}
		t.cache = t.cache[drop:]
	}
	// Copy, so that the slice does not keep the dropped part alive.
	t.slots = append(make([]slot, 0, keep+keep/4), t.slots[n:]...)
	t.first = through + 1
}

// reset empties the table; the next entry is index+1.
func (t *table) reset(index ids.Index, term ids.Term) {
	t.dropCache()
	*t = table{first: index + 1, baseTerm: term}
}
