package mvcc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/lease"
)

// Open rebuilds the index from the records of the engine, in parallel, and resumes an
// unfinished compaction. A record that cannot be decoded is an engine.CorruptionError
// that names it.
func Open(eng engine.Engine, o Options) (*Store, error) {
	s := &Store{eng: eng, o: o.withDefaults(), rev: 1, compactRev: -1}
	s.large.clock = s.o.Clock
	s.sweep.init()
	finished, err := s.metaRevision(finishedKey)
	if err != nil {
		return nil, err
	}
	scheduled, err := s.metaRevision(scheduledKey)
	if err != nil {
		return nil, err
	}
	root, newest, err := load(eng)
	if err != nil {
		return nil, fmt.Errorf("mvcc: rebuild index: %w", err)
	}
	s.tree = &tree{root: root, gen: 1}
	s.compactRev = max(finished, scheduled)
	s.rev = max(1, newest, s.compactRev)
	s.publish(s.rev, s.compactRev)
	s.observeState()
	if scheduled > finished {
		s.sweep.add(s, &compaction{rev: scheduled, prev: finished, done: make(chan error, 1), over: make(chan struct{})})
	}
	return s, nil
}

// metaRevision reads a compact revision from the meta bucket, -1 if there is none.
func (s *Store) metaRevision(key []byte) (ids.Revision, error) {
	v, err := s.eng.Get(nil, key)
	if errors.Is(err, engine.ErrNotFound) {
		return -1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("mvcc: read %s: %w", key[1:], err)
	}
	rev, _, err := ParseRevision(v)
	if err != nil {
		return 0, &engine.CorruptionError{File: "meta key " + string(key[1:]), Err: err}
	}
	return rev.Main, nil
}

// piece holds the records of one range of revisions, in revision order.
type piece struct {
	keys   []byte // all keys, concatenated
	revs   []loaded
	prefix []byte // common to all keys; nil if there is no key
	err    error
}

type loaded struct {
	meta
	lease lease.ID // of a put
	end   int      // end of the key in piece.keys
}

func (p *piece) key(i uint32) []byte {
	if i == 0 {
		return p.keys[:p.revs[0].end]
	}
	return p.keys[p.revs[i-1].end:p.revs[i].end]
}

// load reads every record and builds the index.
func load(eng engine.Engine) (root kid, newest ids.Revision, err error) {
	first, last, err := firstLast(eng)
	if err != nil || last < 0 {
		return newTree().root, last, err
	}
	workers := min(max(runtime.GOMAXPROCS(0), 1), 8)
	pieces, err := readPieces(eng, first, last, workers)
	if err != nil {
		return kid{}, 0, err
	}
	root = build(pieces, workers)
	if root.live > giveBack {
		// The memory used for sorting is larger than the index. It would otherwise stay
		// resident until the heap has grown to twice its size.
		pieces = nil
		debug.FreeOSMemory()
	}
	return root, last, nil
}

// giveBack is the number of keys above which Open returns its working memory to the
// operating system at once.
const giveBack = 100_000

// firstLast returns the first and last main revision in the key bucket, -1 if it is
// empty.
func firstLast(eng engine.Engine) (first ids.Revision, last ids.Revision, err error) {
	it, err := eng.NewIter(engine.Key.Bounds())
	if err != nil {
		return -1, -1, err
	}
	defer it.Close()
	ends := [2]ids.Revision{-1, -1}
	for i, move := range []func() bool{it.First, it.Last} {
		if !move() {
			return -1, -1, it.Error()
		}
		rev, _, err := ParseRevision(it.Key()[1:])
		if err != nil {
			return -1, -1, corrupt(it.Key()[1:], err)
		}
		ends[i] = rev.Main
	}
	return ends[0], ends[1], nil
}

// readPieces decodes the records in ranges of about equal numbers of main revisions.
// There are more ranges than workers, because some are sparse.
func readPieces(eng engine.Engine, first, last ids.Revision, workers int) ([]*piece, error) {
	const stretch = 1 << 12 // smaller ranges are not worth a goroutine
	n := min(workers*8, int((last-first)/stretch)+1)
	width := (last-first)/ids.Revision(n) + 1
	pieces := make([]*piece, n)
	next := make(chan int, n)
	for i := range pieces {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for i := range next {
				from := first + ids.Revision(i)*width
				pieces[i] = readPiece(eng, from, min(from+width, last+1), i == n-1)
			}
		})
	}
	wg.Wait()
	for _, p := range pieces {
		if p.err != nil {
			return nil, p.err
		}
	}
	return pieces, nil
}

// readPiece decodes the records of the main revisions [from, to).
func readPiece(eng engine.Engine, from, to ids.Revision, final bool) *piece {
	p := &piece{}
	upper := recordKey(Revision{Main: to})
	if final {
		_, upper = engine.Key.Bounds() // includes keys that do not look like a revision
	}
	it, err := eng.NewIter(recordKey(Revision{Main: from}), upper)
	if err != nil {
		p.err = err
		return p
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.Value()
		if err == nil {
			err = p.add(it.Key()[1:], value)
		}
		if err != nil {
			p.err = err
			return p
		}
	}
	p.err = it.Error()
	return p
}

// add decodes and validates one record.
func (p *piece) add(key, value []byte) error {
	rev, tomb, err := ParseRevision(key)
	if err != nil {
		return corrupt(key, err)
	}
	rec, err := parseRecord(value)
	if err != nil {
		return corrupt(key, err)
	}
	l := loaded{meta: meta{mod: rev.Main, sub: uint32(rev.Sub), size: uint32(len(value))}, end: len(p.keys) + len(rec.key)}
	switch {
	case tomb:
		l.sub |= tombBit
	case len(value) == 0: // of restore --mark-compacted
	case rec.mod != rev.Main || rec.create <= 0 || rec.create > rec.mod || rec.version <= 0:
		return corrupt(key, fmt.Errorf("key %q has create revision %d, mod revision %d, version %d",
			rec.key, rec.create, rec.mod, rec.version))
	default:
		l.create, l.version, l.lease = rec.create, rec.version, rec.lease
	}
	p.keys = append(p.keys, rec.key...)
	p.revs = append(p.revs, l)
	if len(p.revs) == 1 {
		p.prefix = bytes.Clone(rec.key)
	} else {
		p.prefix = p.prefix[:common(p.prefix, rec.key)]
	}
	return nil
}

func common(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// ref is a record in a piece with the first eight bytes of its key after the prefix
// that all keys share: most comparisons need no more.
type ref struct {
	head  uint64
	piece uint32
	i     uint32
}

// build sorts by key, then revision, and loads the tree.
func build(pieces []*piece, workers int) kid {
	refs := references(pieces)
	less := func(a, b ref) int {
		if a.head != b.head {
			if a.head < b.head {
				return -1
			}
			return 1
		}
		if c := bytes.Compare(pieces[a.piece].key(a.i), pieces[b.piece].key(b.i)); c != 0 {
			return c
		}
		if a.piece != b.piece {
			return int(a.piece) - int(b.piece)
		}
		return int(a.i) - int(b.i)
	}
	runs := make([][]ref, 0, workers)
	var wg sync.WaitGroup
	for i := range workers {
		run := refs[len(refs)*i/workers : len(refs)*(i+1)/workers]
		if len(run) > 0 {
			runs = append(runs, run)
			wg.Go(func() { slices.SortFunc(run, less) })
		}
	}
	wg.Wait()
	b := builder{gen: 1}
	var key []byte
	var revs []meta
	var lease lease.ID
	for len(runs) > 0 {
		least := 0
		for i := 1; i < len(runs); i++ {
			if less(runs[i][0], runs[least][0]) < 0 {
				least = i
			}
		}
		r := runs[least][0]
		if runs[least] = runs[least][1:]; len(runs[least]) == 0 {
			runs = slices.Delete(runs, least, least+1)
		}
		k, l := pieces[r.piece].key(r.i), &pieces[r.piece].revs[r.i]
		if len(revs) > 0 && !bytes.Equal(key, k) {
			b.add(key, revs, lease)
			revs = revs[:0]
		}
		key, lease = k, l.lease
		revs = append(revs, l.meta)
	}
	if len(revs) > 0 {
		b.add(key, revs, lease)
	}
	return b.finish()
}

func references(pieces []*piece) []ref {
	var prefix []byte
	total, seen := 0, false
	for _, p := range pieces {
		total += len(p.revs)
		switch {
		case len(p.revs) == 0:
		case !seen:
			prefix, seen = p.prefix, true
		default:
			prefix = prefix[:common(prefix, p.prefix)]
		}
	}
	refs := make([]ref, 0, total)
	for pi, p := range pieces {
		for i := range p.revs {
			rest := p.key(uint32(i))[len(prefix):]
			var head [8]byte
			copy(head[:], rest)
			refs = append(refs, ref{binary.BigEndian.Uint64(head[:]), uint32(pi), uint32(i)})
		}
	}
	return refs
}
