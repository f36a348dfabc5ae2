// Package digest maintains a digest of what a member has applied, so that members can be
// compared at any index without reading their state.
//
// In: each entry's index and term, and the records that it writes. Out: for every index
// the digest of all that was written up to it, at every index for the newest entries and
// at a coarser step for older ones; reports of such digests, and where two of them
// diverge. Always true: the digest is in the same batch as the effect of the entries and
// their index, so a crash cannot separate them; what members may legitimately hold
// differently is not in it; it is a sum over the entries, so two members are compared
// over the entries that both have summed, wherever each of them began.
//
// What is in the digest and what is not, and why, is in docs/design/integrity.md.
package digest

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"

	"quorate/internal/engine"
	"quorate/internal/ids"
)

// scheme is incremented when the digest of the same entries changes. Members of
// different releases are not compared anyway, as they may write different records.
const scheme = "1"

// Point is a member's digest after it has applied the entry of an index.
type Point struct {
	Index ids.Index
	State uint64 // of all records but those of the v2 API
	V2    uint64 // of the records of the v2 API
}

// The retained points: of every entry, of every middleStep-th, of every coarseStep-th.
// The coarse ones survive a restart.
const (
	fineKept   = 2048
	middleStep = 64
	middleKept = 1024
	coarseStep = 4096
	coarseKept = 256
)

var (
	sumKey   = engine.Digest.K([]byte("sum"))
	pointKey = []byte("p") // followed by an index
)

// Digest is the digest of one store. Begin, Entry, Applied, Store and Publish must be
// called from the goroutine that applies; Report is safe for concurrent use.
type Digest struct {
	batch   batch
	release uint64
	began   ids.Index // what was applied before is not in the digest
	sum     Point
	fresh   bool           // the store's existing digest records, if any, are of another scheme or state
	recent  []Point        // of the current batch
	value   [sumBytes]byte // scratch

	mu     sync.Mutex
	known  Point // published
	levels [3]ring
}

// Open reads the digest of a store that has applied up to an index, for a release. It
// starts over if the stored one is of another index or release: the store comes from
// etcd, an older release has continued it, or this release may write other records than
// the previous one.
func Open(r engine.Reader, applied ids.Index, release string) (*Digest, error) {
	d := &Digest{release: xxhash.Sum64String(scheme + " " + release), began: applied, sum: Point{Index: applied}, fresh: true}
	d.levels = [...]ring{newRing(1, fineKept), newRing(middleStep, middleKept), newRing(coarseStep, coarseKept)}
	v, err := r.Get(nil, sumKey)
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return nil, fmt.Errorf("read the digest: %w", err)
	}
	if len(v) == sumBytes && binary.BigEndian.Uint64(v) == d.release && ids.Index(binary.BigEndian.Uint64(v[16:])) == applied {
		d.fresh, d.began = false, ids.Index(binary.BigEndian.Uint64(v[8:]))
		d.sum.State, d.sum.V2 = binary.BigEndian.Uint64(v[24:]), binary.BigEndian.Uint64(v[32:])
		if err := d.load(r); err != nil {
			return nil, fmt.Errorf("read the digest: %w", err)
		}
	}
	d.known = d.sum
	for i := range d.levels {
		d.levels[i].put(d.sum)
	}
	return d, nil
}

// load reads the points that survive a restart.
func (d *Digest) load(r engine.Reader) (err error) {
	it, err := r.NewIter(engine.Digest.K(pointKey), engine.Digest.K([]byte{pointKey[0] + 1}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		k := it.Key()[2:]
		v, err := it.Value()
		if err != nil {
			return err
		}
		if len(k) != 8 || len(v) != 16 {
			return &engine.CorruptionError{File: fmt.Sprintf("bucket %v, key %x", engine.Digest, k), Err: errors.New("not a point of a digest")}
		}
		p := Point{ids.Index(binary.BigEndian.Uint64(k)), binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])}
		for i := range d.levels {
			d.levels[i].put(p)
		}
	}
	return it.Error()
}

// Begin returns a batch that writes to b and adds the writes to the digest.
func (d *Digest) Begin(b engine.Batch) engine.Batch {
	d.batch.Batch, d.batch.d = b, d
	d.recent = d.recent[:0]
	return &d.batch
}

// Unsummed returns the underlying batch of one that Begin has returned: for records that
// members may hold differently.
func Unsummed(b engine.Batch) engine.Batch {
	if s, ok := b.(*batch); ok {
		return s.Batch
	}
	return b
}

// Entry begins an entry. The entries that a founder writes into its own log before there
// is a leader come from its own flags and are not summed: they have term 1.
func (d *Digest) Entry(index ids.Index, term ids.Term) {
	d.batch.seed = mix(uint64(index))
	d.batch.silent = term <= 1
	d.sum.Index = index
	d.sum.State += mix(d.batch.seed ^ uint64(term))
}

// Applied ends the entry.
func (d *Digest) Applied() { d.recent = append(d.recent, d.sum) }

const sumBytes = 40

// Store writes the digest into the batch, which the caller commits.
func (d *Digest) Store(b engine.Batch) {
	d.batch.Batch = nil
	if d.fresh {
		lower, upper := engine.Digest.Bounds()
		b.DeleteRange(lower, upper)
		d.fresh = false
	}
	v := &d.value
	binary.BigEndian.PutUint64(v[:], d.release)
	binary.BigEndian.PutUint64(v[8:], uint64(d.began))
	binary.BigEndian.PutUint64(v[16:], uint64(d.sum.Index))
	binary.BigEndian.PutUint64(v[24:], d.sum.State)
	binary.BigEndian.PutUint64(v[32:], d.sum.V2)
	b.Set(sumKey, v[:])
	if n := len(d.recent); n == 0 || d.recent[0].Index/coarseStep == d.recent[n-1].Index/coarseStep && d.recent[0].Index%coarseStep != 0 {
		return
	}
	for _, p := range d.recent {
		if p.Index%coarseStep != 0 {
			continue
		}
		binary.BigEndian.PutUint64(v[:], p.State)
		binary.BigEndian.PutUint64(v[8:], p.V2)
		b.Set(storedPoint(p.Index), v[:16])
		if p.Index > coarseStep*coarseKept {
			b.Delete(storedPoint(p.Index - coarseStep*coarseKept))
		}
	}
}

func storedPoint(index ids.Index) []byte {
	return engine.Digest.K(binary.BigEndian.AppendUint64(slices.Clone(pointKey), uint64(index)))
}

// Publish makes what was stored visible to Report, once the batch is committed.
func (d *Digest) Publish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.recent {
		for i := range d.levels {
			d.levels[i].put(p)
		}
	}
	d.known = d.sum
	if cap(d.recent) > 4*fineKept {
		d.recent = nil // one long batch must not hold its memory forever
	}
}

// Report returns the points after an index, and of each level the newest one up to it,
// because another member may have the same ones.
func (d *Digest) Report(from ids.Index) Report {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := Report{Release: d.release, Began: d.began, Points: []Point{{Index: d.began}}}
	for i := range d.levels {
		r.Points = d.levels[i].appendFrom(r.Points, from)
	}
	r.Points = append(r.Points, d.known)
	slices.SortFunc(r.Points, func(a, b Point) int { return cmp.Compare(a.Index, b.Index) })
	r.Points = slices.CompactFunc(r.Points, func(a, b Point) bool { return a.Index == b.Index })
	return r
}

// ring holds the newest points whose index is a multiple of step.
type ring struct {
	step   ids.Index
	points []Point
	newest ids.Index // index
}

func newRing(step ids.Index, n int) ring { return ring{step: step, points: make([]Point, n)} }

func (r *ring) put(p Point) {
	if p.Index%r.step != 0 || p.Index == 0 {
		return
	}
	r.points[p.Index/r.step%ids.Index(len(r.points))] = p
	r.newest = max(r.newest, p.Index)
}

// appendFrom appends the points after an index and the newest one up to it.
func (r *ring) appendFrom(to []Point, from ids.Index) []Point {
	n := ids.Index(len(r.points))
	for index := r.newest; index > 0 && r.newest-index < n*r.step; index -= r.step {
		p := r.points[index/r.step%n]
		if p.Index != index { // there are gaps from before the store was opened
			continue
		}
		to = append(to, p)
		if index <= from {
			break
		}
	}
	return to
}

// mix spreads all bits of x over the result.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// batch adds the writes to the digest. It is a sum, so the order of records within an
// entry does not matter.
type batch struct {
	engine.Batch
	d      *Digest
	seed   uint64 // of the entry
	silent bool
}

// The kinds of writes.
const (
	opSet = iota + 1
	opDelete
	opDeleteRange
)

func (b *batch) Set(key, value []byte) {
	b.Batch.Set(key, value)
	switch engine.Bucket(key[0]) {
	case engine.Lease, engine.Members:
		value = nil // parts of these come from a member's own flags
	}
	b.add(opSet, key, value)
}

func (b *batch) Delete(key []byte) {
	b.Batch.Delete(key)
	b.add(opDelete, key, nil)
}

func (b *batch) DeleteRange(lower, upper []byte) {
	b.Batch.DeleteRange(lower, upper)
	b.add(opDeleteRange, lower, upper)
}

func (b *batch) add(op uint64, key, value []byte) {
	if b.silent {
		return
	}
	h := mix(mix(b.seed+op^xxhash.Sum64(key)) ^ bits.RotateLeft64(xxhash.Sum64(value), 32))
	if engine.Bucket(key[0]) == engine.V2 {
		b.d.sum.V2 += h
	} else {
		b.d.sum.State += h
	}
}
