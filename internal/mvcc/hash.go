package mvcc

import (
	"context"
	"fmt"
	"hash/crc32"
	"sort"
	"sync"

	"go.uber.org/zap"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// HashResult is a hash of the records that members compare: equal (HashRev,
// CompactRev) must mean equal Hash.
type HashResult struct {
	Hash       uint32
	CompactRev ids.Revision // -1 if never compacted
	HashRev    ids.Revision
	CurrentRev ids.Revision
}

// maxSums is the number of compaction hashes that are stored.
const maxSums = 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A compaction at R with previous compact revision P defines a hash: over the records
// up to P that the compaction keeps, and then over every record of (P, R], including
// those that it deletes. Records up to P come first in the engine, so the two parts can
// be computed separately and joined. The second part is computed before the deletion,
// at a cost proportional to what was written since P. The first part costs as much as
// is stored; it is computed at once if that is little, otherwise when the hash is
// requested, provided that no further compaction has run. (A compaction always keeps
// something: the change that made revision R. So etcd's rule that an empty keep set
// filters nothing does not apply here.)

// checksum is the hash of a compaction.
type checksum struct {
	rev, prev ids.Revision
	tail      uint32 // over the records of (prev, rev]
	tailLen   int64
	whole     bool // hash is known
	hash      uint32
}

// checksums are the newest compaction hashes by ascending revision.
type checksums struct {
	mu   sync.Mutex
	list []checksum
}

func (c *checksums) store(sum checksum) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := sort.Search(len(c.list), func(i int) bool { return c.list[i].rev >= sum.rev })
	if i < len(c.list) && c.list[i].rev == sum.rev {
		c.list[i] = sum
		return
	}
	c.list = insertAt(c.list, i, sum)
	if len(c.list) > maxSums {
		c.list = append([]checksum(nil), c.list[1:]...)
	}
}

func (c *checksums) find(rev ids.Revision) (checksum, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sum := range c.list {
		if sum.rev == rev {
			return sum, true
		}
	}
	return checksum{}, false
}

// CompactionHash identifies the compaction of a stored hash.
type CompactionHash struct {
	Rev, Prev ids.Revision // its compact revision and the previous one, -1 for none
}

// CompactionHashes lists the compactions whose hashes are stored, newest first.
// HashKV at Rev returns the hash, with CompactRev equal to Prev.
func (s *Store) CompactionHashes() []CompactionHash {
	s.sums.mu.Lock()
	defer s.sums.mu.Unlock()
	var all []CompactionHash
	for i := len(s.sums.list) - 1; i >= 0; i-- {
		all = append(all, CompactionHash{s.sums.list[i].rev, s.sums.list[i].prev})
	}
	return all
}

// summing is a compaction hash that is being computed.
type summing struct {
	scanned bool
	next    Revision // where the next step begins
	crc     uint32
	n       int64
}

// sumStep hashes the next part of the records of (prev, rev].
func (s *Store) sumStep(c *compaction) error {
	sum := c.sum
	if sum.next.Main <= c.prev {
		sum.next = Revision{Main: c.prev + 1}
	}
	left := s.o.CompactionBatch
	end, err := s.records(context.Background(), sum.next, c.rev, func(key, value []byte, rev Revision, _ bool) bool {
		if left--; left < 0 {
			sum.next = rev
			return false
		}
		sum.crc = crc32.Update(crc32.Update(sum.crc, castagnoli, key), castagnoli, value)
		sum.n += int64(len(key) + len(value))
		return true
	})
	if err != nil {
		return fmt.Errorf("hash before compaction: %w", err)
	}
	sum.scanned = end
	return nil
}

// keepSum stores the hash of a finished compaction.
func (s *Store) keepSum(c *compaction) {
	if c.sum == nil {
		return
	}
	sum := checksum{rev: c.rev, prev: c.prev, tail: c.sum.crc, tailLen: c.sum.n}
	if c.prev < 0 {
		sum.complete(crc32.Update(0, castagnoli, []byte(engine.Key.String())))
	}
	s.sums.store(sum)
	v := s.View()
	defer v.Close()
	if !sum.whole && v.Keys() <= int64(s.o.HashKeys) {
		if _, err := s.completeSum(context.Background(), v, sum); err != nil {
			s.o.Logger.Warn("compaction hash is postponed", zap.Int64("compact-revision", int64(c.rev)), zap.Error(err))
		}
	}
}

func (c *checksum) complete(head uint32) {
	c.hash, c.whole = crcJoin(head, c.tail, c.tailLen), true
}

// completeSum computes the first part of a compaction hash and joins the two. The
// result is not whole if a further compaction has made that impossible.
func (s *Store) completeSum(ctx context.Context, v *View, sum checksum) (checksum, error) {
	if v.st.compactRev != sum.rev {
		return sum, nil
	}
	head := crc32.Update(0, castagnoli, []byte(engine.Key.String()))
	var bad error
	_, err := s.records(ctx, Revision{}, sum.prev, func(key, value []byte, rev Revision, tomb bool) bool {
		if tomb {
			return true
		}
		var keep bool
		if keep, bad = v.keeps(key, value, rev, sum.rev); keep {
			head = crc32.Update(crc32.Update(head, castagnoli, key), castagnoli, value)
		}
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return sum, err
	}
	sum.complete(head)
	s.sums.store(sum)
	return sum, nil
}

// keeps reports whether the record of rev is the one that a read at `at` returns.
func (v *View) keeps(key, value []byte, rev Revision, at ids.Revision) (bool, error) {
	rec, err := parseRecord(value)
	if err != nil {
		return false, corrupt(key, err)
	}
	n, i, ok := v.st.root.n.find(rec.key)
	if !ok {
		return false, nil
	}
	m, ok := n.at(i, at)
	return ok && m.rev() == rev, nil
}

// HashKV hashes the records up to rev, 0 for the current revision. A stored compaction
// hash of exactly rev has priority, as in etcd, even below the compact revision.
// Errors: ErrCompacted, ErrFutureRev, those of the engine or of ctx.
func (s *Store) HashKV(ctx context.Context, rev ids.Revision) (HashResult, error) {
	began := s.o.Clock.Now()
	v := s.View()
	defer v.Close()
	s = v.s
	if sum, ok := s.sums.find(rev); ok {
		if !sum.whole {
			var err error
			if sum, err = s.completeSum(ctx, v, sum); err != nil {
				return HashResult{}, err
			}
		}
		if sum.whole {
			return HashResult{Hash: sum.hash, CompactRev: sum.prev, HashRev: sum.rev, CurrentRev: v.st.rev}, nil
		}
	}
	res := HashResult{CompactRev: v.st.compactRev, HashRev: rev, CurrentRev: v.st.rev}
	switch {
	case rev > 0 && rev < v.st.compactRev:
		return HashResult{}, ErrCompacted
	case rev > v.st.rev:
		return HashResult{CurrentRev: v.st.rev}, ErrFutureRev
	case rev < 0:
		// No record is that old: what remains is the bucket's name, as in etcd.
		res.Hash = crc32.Checksum([]byte(engine.Key.String()), castagnoli)
		return res, nil
	case rev == 0:
		res.HashRev = v.st.rev
	}
	var err error
	res.Hash, err = s.hash(ctx, v, res.HashRev)
	metrics.MVCCHashRevDurationSeconds.Observe(s.o.Clock.Now().Sub(began).Seconds())
	return res, err
}

// hash computes the hash of the records up to rev.
func (s *Store) hash(ctx context.Context, v *View, rev ids.Revision) (uint32, error) {
	compactRev := v.st.compactRev
	keepAt := rev
	if v.st.root.count(span{}, rev) == 0 {
		// An empty keep set disables etcd's filter: what the compaction has left counts,
		// whether or not the rest is already deleted.
		keepAt = compactRev
	}
	h := crc32.Update(0, castagnoli, []byte(engine.Key.String()))
	var bad error
	_, err := s.records(ctx, Revision{}, rev, func(key, value []byte, at Revision, tomb bool) bool {
		if at.Main <= compactRev {
			keep := false // tombstones up to the compact revision never count
			if !tomb {
				keep, bad = v.keeps(key, value, at, keepAt)
			}
			if !keep {
				return bad == nil
			}
		}
		h = crc32.Update(crc32.Update(h, castagnoli, key), castagnoli, value)
		return true
	})
	if err == nil {
		err = bad
	}
	return h, err
}

// records calls fn for the records from `from` up to and including main revision `to`,
// with their key in the bucket, until fn returns false. It reports whether it reached
// the end.
func (s *Store) records(ctx context.Context, from Revision, to ids.Revision, fn func(key, value []byte, rev Revision, tomb bool) bool) (end bool, err error) {
	it, err := s.eng.NewIter(recordKey(from), recordKey(Revision{Main: to + 1}))
	if err != nil {
		return false, err
	}
	defer it.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		key := it.Key()[1:]
		rev, tomb, err := ParseRevision(key)
		if err != nil {
			return false, corrupt(key, err)
		}
		value, err := it.Value()
		if err != nil {
			return false, fmt.Errorf("read record of revision %d.%d: %w", rev.Main, rev.Sub, err)
		}
		if !fn(key, value, rev, tomb) {
			return false, nil
		}
	}
	return true, it.Error()
}

// crcJoin returns the CRC-32C of a concatenation from those of its two parts and the
// length of the second: appending n zero bytes multiplies a CRC by x^8n.
func crcJoin(head, tail uint32, tailLen int64) uint32 {
	return crcMul(crcShift(tailLen), head) ^ tail
}

// crcMul multiplies two polynomials modulo the CRC's, in the reflected bit
// order (the top bit is x^0).
func crcMul(a, b uint32) uint32 {
	var p uint32
	for m := uint32(1) << 31; m != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
		}
		carry := b & 1
		b >>= 1
		if carry != 0 {
			b ^= crc32.Castagnoli
		}
	}
	return p
}

// crcShift returns x^(8n) modulo the CRC's polynomial.
func crcShift(n int64) uint32 {
	p, sq := uint32(1)<<31, uint32(1)<<(31-8) // x^0, x^8
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			p = crcMul(p, sq)
		}
		sq = crcMul(sq, sq)
	}
	return p
}
